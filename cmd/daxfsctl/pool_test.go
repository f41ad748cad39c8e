package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func TestPoolStat(t *testing.T) {
	s := newSite(t)
	s.serve()
	var st poolStatJSON
	s.json(0, &st, "pool", "stat")
	if st.Layers != 2 || st.Images != 0 || st.Size != 64<<20 || st.Owner == nil || st.Owner.PID != os.Getpid() {
		t.Errorf("stat %+v, owner %+v", st, st.Owner)
	}
	b := st.Bytes
	if sum := b.Superblock + b.Catalog + b.Metadata + b.Files + b.Copies + b.Quarantined + b.Inflight + b.Free; sum != st.Size {
		t.Errorf("bytes by owner are %d, the pool has %d", sum, st.Size)
	}
	if st.MaxSize != st.Size || st.Available != b.Free {
		t.Errorf("%d of %d bytes available, %d are free", st.Available, st.MaxSize, b.Free)
	}
	if st.Saved != 10000 {
		t.Errorf("saved %d bytes, want 10000", st.Saved)
	}
	wants(t, s.good("pool", "stat"), "in use by daxfsctl.test", "2 layers, 0 images", "9.8 KiB saved by sharing")
	s.close()
	wants(t, s.good("pool", "stat"), "state:      closed")
}

// The daemon's answers and its files' say the same.
func TestPoolLs(t *testing.T) {
	s := newSite(t)
	s.run("test/9/container", appName())
	s.serve()
	var online, offline poolLsJSON
	s.json(0, &online, "pool", "ls")
	text := s.good("pool", "ls")
	wants(t, text, "KIND", "1 container, 1 snapshot", "1 snapshot, 1 image")
	long := s.good("pool", "ls", "-l")
	wants(t, long, "container:  test/9/container", "snapshot:   "+appName(), "chain ID:   sha256:", "layer:      ")
	s.close()
	s.json(0, &offline, "pool", "ls")
	if online.From != "daemon" || offline.From != "metadata" {
		t.Errorf("references from %q and %q", online.From, offline.From)
	}
	if len(online.Records) != 3 || len(offline.Records) != 3 {
		t.Fatalf("%d and %d records, want 3", len(online.Records), len(offline.Records))
	}
	if again := s.good("pool", "ls"); again != text {
		t.Errorf("without the daemon:\n%swith it:\n%s", again, text)
	}
	img := online.Records[0]
	if img.Kind != "image" || len(img.Layers) != 2 || img.Data != 20000+4+3+4 || img.Entries != 8 ||
		"test/2/"+img.ChainID != appName() || len(img.UsedBy) != 1 || img.Mount == nil {
		t.Errorf("image %+v", img)
	}
	if l := online.Records[1]; l.Kind != "layer" || l.Key != img.Layers[0] || len(l.Images) != 1 || l.Snapshots[0] != baseName() {
		t.Errorf("layer %+v", l)
	}
}

// Every byte has exactly one owner, and every extent names its layers.
func TestPoolLsExtents(t *testing.T) {
	s := newSite(t)
	s.serve()
	var res struct{ Owners []ownerOf }
	s.json(0, &res, "pool", "ls", "--extents")
	at, shared := int64(0), 0
	for _, o := range res.Owners {
		if o.Offset != at {
			t.Fatalf("range at %d, want %d", o.Offset, at)
		}
		at += o.Size
		if o.Kind != "extent" {
			continue
		}
		if len(o.Layers) != o.References {
			t.Errorf("extent %+v: layers are not as many as references", o)
		}
		if o.References == 2 && o.Bytes == 10000 {
			shared++
		}
	}
	if at != 64<<20 || shared != 1 {
		t.Errorf("owners up to %d, %d extents shared", at, shared)
	}
	wants(t, s.good("pool", "ls", "--extents"), "OFFSET", "superblock", "catalog", "free")
}

func TestPoolCheck(t *testing.T) {
	s := newSite(t)
	s.run("c", appName())
	s.serve()
	wants(t, s.good("pool", "check"), "sound: 3 records and 4 extents checked", "files not read")
	wants(t, s.good("pool", "check", "--data"), "sound", "all files read")

	// A byte of a file: only --data sees it.
	var res struct{ Owners []ownerOf }
	s.json(0, &res, "pool", "ls", "--extents")
	var extent, segment int64
	for _, o := range res.Owners {
		switch {
		case o.Kind == "extent" && o.Bytes == 10000:
			extent = o.Offset
		case strings.HasPrefix(o.Record, "image"):
			segment = o.Offset
		}
	}
	if err := flip(s.poolPath(), extent+5000); err != nil {
		t.Fatal(err)
	}
	s.good("pool", "check")
	var check poolCheckJSON
	s.json(1, &check, "pool", "check", "--data")
	if check.OK || len(check.Problems) != 1 || check.Problems[0].Offset != extent {
		t.Errorf("check --data: %+v", check)
	}
	out, _, code := s.ctl("pool", "check", "--data")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "BAD  extent ", "1 problem, 0 records in quarantine, 0 layers lost")

	// A byte of an image's metadata.
	if err := flip(s.poolPath(), segment+disk.BlockSize+100); err != nil {
		t.Fatal(err)
	}
	out, _, code = s.ctl("pool", "check")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "image ")
	_, errOut, code := s.ctl("image", "check", "pool:sha256:"+strings.TrimPrefix(filepath.Base(appName()), "sha256:"))
	if code != 1 {
		t.Errorf("image check: status %d", code)
	}
	wants(t, errOut, "daxfsctl: ", "digest")
}

// An image with a file that is no extent of its layers could lose it.
func TestPoolCheckForeignExtent(t *testing.T) {
	s := newSite(t)
	s.serve()
	ctx := context.Background()
	var layer *daxmem.Record
	var foreign int64
	for _, r := range s.pool.Records() {
		if len(s.snapshotsOf(r)) > 0 && s.snapshotsOf(r)[0] == appName() {
			layer = r
			continue
		}
		for _, o := range s.pool.Owners() {
			if o.Kind == daxmem.OwnExtent && o.Refs == 1 && o.Bytes == 3 { // etc/conf
				foreign = o.Offset
			}
		}
	}
	root := &mkdaxfs.Node{Mode: disk.TypeDir | 0o755}
	root.Set("stolen", &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: 3, Extent: mkdaxfs.Extent{Offset: foreign}})
	l, err := mkdaxfs.NewLayout(&mkdaxfs.Tree{Root: root}, mkdaxfs.Options{Layers: [][32]byte{layer.Key}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.pool.PublishImage(ctx, [32]byte{1}, [][32]byte{layer.Key}, disk.BlockSize+l.MetaSize(), s.build(l), daxmem.RecordMeta{Entries: 1}); err != nil {
		t.Fatal(err)
	}
	out, _, code := s.ctl("pool", "check")
	if code != 1 {
		t.Errorf("status %d", code)
	}
	wants(t, out, "inode 2: data [", "is no extent of the image's layers")
}

// A pool that was lost costs the layers that snapshots need; nothing else says
// so before a container starts.
func TestPoolCheckLostLayers(t *testing.T) {
	s := newSite(t)
	s.close()
	if err := os.Remove(s.poolPath()); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.serve()
	var check poolCheckJSON
	s.json(1, &check, "pool", "check")
	if check.OK || len(check.Lost) != 2 || len(check.Problems)+len(check.Quarantined) != 0 {
		t.Errorf("%+v", check)
	}
	out, _, _ := s.ctl("pool", "check")
	wants(t, out, "LOST  layer ", "of snapshot "+appName(), "2 layers lost")
	d := s.examine(1, "version = 3\n"+proxyTOML+unpackTOML)
	if c := d.find(t, "layers"); c.Status != fail || !strings.Contains(c.Detail, "2 layers that snapshots need") {
		t.Errorf("%+v", c)
	}
	// Taking the images away puts it in order.
	for _, name := range []string{appName(), baseName()} {
		if err := s.sn.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s.good("pool", "check")
}

// A daemon that has never had a snapshot.
func TestPoolEmpty(t *testing.T) {
	s := bareSite(t)
	for range 2 {
		var ls poolLsJSON
		s.json(0, &ls, "pool", "ls")
		if ls.From != "metadata" || ls.Error != "" || len(ls.Records) != 0 {
			t.Errorf("%+v", ls)
		}
		s.good("pool", "check")
		s.good("pool", "gc")
		s.open()
		s.serve()
		s.json(0, &ls, "pool", "ls")
		if ls.From != "daemon" || ls.Error != "" || len(ls.Records) != 0 {
			t.Errorf("%+v", ls)
		}
		s.good("pool", "check")
		s.good("pool", "gc")
		s.close()
	}
}

// snapshotsOf asks pool ls for the snapshots of a record.
func (s *site) snapshotsOf(r *daxmem.Record) []string {
	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls")
	for _, l := range ls.Records {
		if strings.HasPrefix(l.Key, shortKey(r.Key)) {
			return l.Snapshots
		}
	}
	return nil
}

// pool:KEY finds records by the beginning of their keys, and by chain IDs.
func TestPoolNames(t *testing.T) {
	s := newSite(t)
	s.run("c", appName())
	s.serve()
	var ls poolLsJSON
	s.json(0, &ls, "pool", "ls")
	img, layer := ls.Records[0], ls.Records[1]
	for _, name := range []string{img.Key, img.Key[:12], img.ChainID, img.ChainID[:20]} {
		if out := s.good("image", "cat", "pool:"+name, "/etc/conf"); out != "one" {
			t.Errorf("pool:%s: %q", name, out)
		}
	}
	wants(t, s.good("image", "check", "pool:"+layer.Key[:12]), "sound: native layer, no EROFS view")
	wants(t, s.good("image", "dump", "pool:"+img.Key), "\n/app/shared 0100644 1 ")
	out, _, code := s.ctl("image", "diff", "pool:"+layer.Key, "pool:"+img.Key)
	if code != 1 {
		t.Errorf("diff: status %d", code)
	}
	wants(t, out, "+ /app/main\n")
	if strings.Contains(out, "/shared: ") {
		t.Errorf("shared files differ:\n%s", out)
	}
	for name, want := range map[string]string{
		"":                        "want pool: and the beginning of a key",
		"XYZ":                     "want pool: and the beginning of a key",
		"ffffffffffffffffffffff":  "no such image or layer",
		"sha256:" + "00000000000": "no such image or layer",
		strings.TrimPrefix(baseName(), "test/2/")[:20]: "no container has needed this image yet",
	} {
		_, errOut, code := s.ctl("image", "check", "pool:"+name)
		if code == 0 {
			t.Errorf("pool:%s was found", name)
		}
		wants(t, errOut, want)
	}
	s.close()
	if out := s.good("image", "cat", "pool:"+img.ChainID, "/etc/conf"); out != "one" {
		t.Errorf("without the daemon: %q", out)
	}
	// Another kernel has no snapshots of it.
	if out := s.good("--root", t.TempDir(), "--pool", filepath.Join(s.dir, "pool.daxfs"), "image", "cat", "pool:"+img.ChainID, "/etc/conf"); out != "one" {
		t.Errorf("by the catalog alone: %q", out)
	}
}

func TestPickAmbiguous(t *testing.T) {
	records := []*daxmem.Record{
		{Kind: daxmem.KindLayer, Key: [32]byte{1, 1}, Quarantined: "bad"},
		{Kind: daxmem.KindLayer, Key: [32]byte{1, 1}},
		{Kind: daxmem.KindImage, Key: [32]byte{1, 2}},
	}
	all := func(*daxmem.Record) bool { return true }
	if _, err := pick(records, "x", all); err == nil || !strings.Contains(err.Error(), "2 match: layer 010100000000, image 010200000000") {
		t.Errorf("ambiguous: %v", err)
	}
	if r, err := pick(records[:2], "x", all); err != nil || r.Quarantined != "" {
		t.Errorf("the sound one of two: %+v, %v", r, err)
	}
}
