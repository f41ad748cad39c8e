package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/internal/gunzip"
)

// bench is what all parts work with.
type bench struct {
	*options
	t       testing.TB
	others  lab.Peers
	missing map[string]string // peers that are not to be had, and why
	labs    map[labKey]*lab.Lab
	layouts map[string]*images.Layout
	known   map[string]sizes // of images
}

// labKey tells the labs apart: what is fixed in containerd's and our daemon's
// configuration.
type labKey struct {
	unpacks int
	file    bool
}

// measure makes the raw files of the chosen parts anew.
func measure(ctx context.Context, t testing.TB, o *options) error {
	b := &bench{options: o, t: t, labs: map[labKey]*lab.Lab{}, layouts: map[string]*images.Layout{}, known: map[string]sizes{}}
	b.others, b.missing = findPeers(ctx, o.peers)
	for _, part := range parts {
		if !slices.Contains(o.measure, part) {
			continue
		}
		raw, err := report.NewRaw(ctx, o.rawPath(part), command(), b.note())
		if err != nil {
			return err
		}
		start := time.Now()
		log.Printf("measuring %s", part)
		how := map[string]func(context.Context, *report.Raw) error{
			"pull": b.measurePull, "unpack": b.measureUnpack, "related": b.measureRelated,
			"start": b.measureStart, "converted": b.measureConverted, "profile": b.measureProfile,
		}[part]
		if err := how(ctx, raw); err != nil {
			return fmt.Errorf("measure %s: %w", part, err)
		}
		if err := raw.Save(); err != nil {
			return err
		}
		log.Printf("measured %s in %s", part, time.Since(start).Round(time.Second))
	}
	return nil
}

// note says in raw files what the figures depend on besides the machine.
func (b *bench) note() string {
	note := "gunzip: " + filepath.Base(cmp.Or(gunzip.Program(), "built in"))
	if b.others.MkfsErofs != "" {
		out, _ := exec.Command(filepath.Join(b.others.MkfsErofs, "mkfs.erofs"), "--version").Output()
		version, _, _ := strings.Cut(string(out), "\n")
		note += "; " + version
	}
	var st unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &st); err == nil {
		name, ok := filesystems[st.Type]
		if !ok {
			name = fmt.Sprintf("type %#x", st.Type)
		}
		note += "; labs on " + name
	}
	return note
}

// filesystems are named by statfs(2)'s f_type.
var filesystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
}

// lab returns the lab for a peer and mode, started when it is first asked for.
func (b *bench) lab(p peer, m mode) *lab.Lab {
	key := labKey{m.unpacks, p.file}
	l, ok := b.labs[key]
	if !ok {
		l = lab.New(b.t, lab.Config{
			Rebase: true, Parallel: m.unpacks, Memory: !p.file, Measured: true, KeepMounted: true, Peers: b.others,
		})
		b.labs[key] = l
	}
	return l
}

// namespace returns ctx in one of a lab's namespaces.
func namespace(ctx context.Context, l *lab.Lab, name string) context.Context {
	ns, _ := namespaces.Namespace(l.Namespace(name)) // has one
	return namespaces.WithNamespace(ctx, ns)
}

// layout returns an image, made now if it is not in the cache.
func (b *bench) layout(name string) (*images.Layout, error) {
	if l, ok := b.layouts[name]; ok {
		return l, nil
	}
	l, err := lab.MakeImage(b.t, name)
	if err == nil {
		b.layouts[name] = l
	}
	return l, err
}

// sizes of an image: of its layers as they are fetched, and unpacked.
type sizes struct {
	Blobs int64 `json:"blobs,omitempty"`
	Data  int64 `json:"data,omitempty"`
}

func (b *bench) sizes(name string) (sizes, error) {
	if s, ok := b.known[name]; ok {
		return s, nil
	}
	l, err := b.layout(name)
	if err != nil {
		return sizes{}, err
	}
	layers, err := l.Layers()
	if err != nil {
		return sizes{}, err
	}
	var s sizes
	for _, layer := range layers {
		s.Blobs += layer.Size
		r, err := l.Open(layer)
		if err != nil {
			return sizes{}, err
		}
		n, err := io.Copy(io.Discard, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return sizes{}, err
		}
		s.Data += n
	}
	b.known[name] = s
	return s, nil
}

// cache puts an image's files that the registry serves into the page cache, or
// out of it.
func cache(l *images.Layout, in bool) error {
	return filepath.WalkDir(l.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if in {
			_, err = io.Copy(io.Discard, f)
			return err
		}
		if err := f.Sync(); err != nil { // dirty pages stay
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// settle writes out what earlier measurements have left behind, so that no later
// one pays for it.
func settle() { unix.Sync() }

// prepareContainer prepares a container's root file system and mounts it, as a
// runtime would; the function it returns takes it away again. The context has a
// lease, which keeps the snapshot from being collected.
func prepareContainer(ctx context.Context, l *lab.Lab, img client.Image, snapshotter string) (remove func() error, err error) {
	const key = "bench-container"
	sn := l.Client().SnapshotService(snapshotter)
	mounts, err := sn.Prepare(ctx, key, l.ChainID(ctx, img))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.Dir, "bench-root")
	if err != nil {
		return nil, err
	}
	active := false
	info, err := l.Client().MountManager().Activate(ctx, key, mounts)
	switch {
	case err == nil:
		mounts, active = info.System, true
	case !errdefs.IsNotImplemented(err):
		return nil, fmt.Errorf("activate mounts: %w", err)
	}
	if err := mount.All(mounts, dir); err != nil {
		return nil, fmt.Errorf("mount a container's root file system: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bin/true")); err != nil {
		return nil, fmt.Errorf("look into a container's root file system: %w", err)
	}
	return func() error {
		err := mount.UnmountMounts(mounts, dir, 0)
		if active {
			err = errors.Join(err, l.Client().MountManager().Deactivate(ctx, key))
		}
		return errors.Join(err, os.Remove(dir), sn.Remove(ctx, key))
	}, nil
}

// forget removes an image and checks that nothing of it is left: no blob, no
// snapshot, nothing in the pool.
func (b *bench) forget(ctx context.Context, l *lab.Lab, p peer, name string) error {
	l.RemoveImage(ctx, name)
	l.Collect()
	if left := l.Snapshots(ctx, p.snapshotter); len(left) > 0 {
		return fmt.Errorf("%s: snapshots left after %s was removed: %q", p.name, name, left)
	}
	var blobs []string
	err := l.Client().ContentStore().Walk(ctx, func(i content.Info) error {
		blobs = append(blobs, i.Digest.String())
		return nil
	})
	if err != nil {
		return err
	}
	if len(blobs) > 0 {
		return fmt.Errorf("%s: blobs left after %s was removed: %q", p.name, name, blobs)
	}
	if p.snapshotter != lab.Daxfs {
		return nil
	}
	l.Cleanup(ctx)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := l.Daxfsctl("--json", "pool", "ls")
		if err != nil {
			return err
		}
		var pool struct{ Records []json.RawMessage }
		if err := json.Unmarshal([]byte(out), &pool); err != nil {
			return fmt.Errorf("read what daxfsctl prints: %w", err)
		}
		if len(pool.Records) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d layers and images left in the pool after %s was removed", len(pool.Records), name)
		}
	}
}
