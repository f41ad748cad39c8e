package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// Trial is an image to try a mount with.
type Trial struct {
	Source
	// Own says that it is the image of trialBytes; of others the contents are
	// not known.
	Own bool
	// Close gives the image back.
	Close func()
}

// Lend returns what makes trials of an image of our own, for Pool.Trial. lend
// puts bytes into unused space of the region until giveBack is called.
func Lend(r Region, lend func(ctx context.Context, b []byte) (off int64, giveBack func(), err error)) func(context.Context) (*Trial, error) {
	return func(ctx context.Context) (*Trial, error) {
		b, err := trialBytes(ctx)
		if err != nil {
			return nil, err
		}
		off, giveBack, err := lend(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("put an image into %s to try it: %w", r.Path(), err)
		}
		return &Trial{Source: Source{r, off, int64(len(b))}, Own: true, Close: giveBack}, nil
	}
}

const trialFile = "probe" // its name and its content

// trialBytes makes a self-contained image of one file.
func trialBytes(ctx context.Context) ([]byte, error) {
	fd, err := unix.MemfdCreate("daxfs-trial", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "daxfs-trial")
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }() // holds nothing without a spool
	n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o444, Size: int64(len(trialFile))}
	if n.Extent, err = b.Put(ctx, strings.NewReader(trialFile), n.Size); err != nil {
		return nil, err
	}
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755, Children: []mkdaxfs.Child{{Name: trialFile, Node: n}}}
	stats, err := b.Finish(ctx, &mkdaxfs.Tree{Root: root})
	if err != nil {
		return nil, err
	}
	out := make([]byte, stats.Size)
	_, err = f.ReadAt(out, 0)
	return out, err
}

// try mounts a trial, reads from it, and unmounts it again. The mount says how
// it was done. It is in a mount namespace of its own: when this process is
// killed half way, the mount ends with it.
func (t *Trial) try(mount func(src Source, target string) (*Mount, error)) (m *Mount, err error) {
	onOwnThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNS); err != nil {
			err = fmt.Errorf("make a mount namespace: %w", err)
			return
		}
		// Mounts here are not seen outside; what is unmounted there is here too.
		if err = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			err = fmt.Errorf("make mounts private: %w", err)
			return
		}
		m, err = t.tryHere(mount)
	})
	return m, err
}

// onOwnThread runs f on a thread that ends with it.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end. While it waits here, f gets another.
			defer runtime.UnlockOSThread()
			onOwnThread(f)
			return
		}
		f()
	}()
	<-done
}

// tryHere is try in a namespace that nobody else is in.
func (t *Trial) tryHere(mount func(src Source, target string) (*Mount, error)) (_ *Mount, err error) {
	target := os.TempDir() // only this thread sees what is mounted there
	m, err := mount(t.Source, target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(target, unix.UMOUNT_NOFOLLOW)) }()
	if !t.Own {
		_, err = os.ReadDir(target)
		return m, err
	}
	got, err := os.ReadFile(filepath.Join(target, trialFile))
	if err == nil && string(got) != trialFile {
		err = fmt.Errorf("read %q from the trial image, want %q", got, trialFile)
	}
	return m, err
}

// probeByTrial answers for an engine whose other needs are met.
func probeByTrial(ctx context.Context, probe Probe, p Pool, mount func(src Source, target string) (*Mount, error)) Probe {
	if p.Trial == nil {
		return probe.with(Unknown, "the pool has no image yet to try it with", "start the daemon, which tries it")
	}
	t, err := p.Trial(ctx)
	if err != nil {
		return probe.with(Unknown, err.Error(), "")
	}
	defer t.Close()
	m, err := t.try(mount)
	if err != nil {
		return probe.with(No, err.Error(), remedyFor(err, p.Region))
	}
	probe.Answer, probe.Method = Yes, m.Method
	return probe
}

// remedyFor says what helps where an error number tells.
func remedyFor(err error, r Region) string {
	switch {
	case errors.Is(err, unix.EBUSY) && r.Kind() == "pmem": // Linux 7 and nd_pmem, see kmod/README.md
		return fmt.Sprintf("take the memory without its driver: pool.path = \"phys:%#x,size=%d\", and "+
			"echo namespace0.0 > /sys/bus/nd/drivers/nd_pmem/unbind", r.Address(), r.Size())
	case errors.Is(err, unix.EBUSY) && r.Kind() == "devdax": // pages of 2 MiB, which cannot be mapped singly
		return fmt.Sprintf("make the device with an alignment of 4 KiB (ndctl create-namespace … -a 4096), or take the memory without its driver: "+
			"pool.path = \"phys:%#x,size=%d\", and echo %s > /sys/bus/dax/drivers/device_dax/unbind (pmem: /sys/bus/nd/drivers/dax_pmem/unbind)",
			r.Address(), r.Size(), filepath.Base(r.Path()))
	case errors.Is(err, unix.EBUSY):
		return "unbind the driver that owns the memory, or unmount what overlaps it"
	case errors.Is(err, unix.EPERM):
		return "run with CAP_SYS_ADMIN in the initial user namespace"
	}
	return "see the kernel log"
}
