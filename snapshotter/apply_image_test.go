package snapshotter_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/convert"
	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// imageOf makes a DAXFS image of files, as it travels.
func imageOf(t testing.TB, opts mkdaxfs.BuildOptions, entries ...entry) []byte {
	t.Helper()
	b, err := mkdaxfs.NewStreamBuilder(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	layer, _, err := convert.FromTar(ctx, bytes.NewReader(tarOf(t, entries...)), b, convert.TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := convert.Merge([]*mkdaxfs.Tree{layer})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := b.Stream(ctx, tree, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sampleImage has small files, equal files, and one that is larger than what is
// put at once.
func sampleImage(t testing.TB) []byte {
	big := strings.Repeat("0123456789abcdef", 200_000)
	return imageOf(t, mkdaxfs.BuildOptions{Share: true}, entry{"etc/os", "one"}, entry{"etc/same", "one"}, entry{"empty", ""},
		entry{"big", big}, entry{"zeros", strings.Repeat("\x00", 100_000)}, entry{"last", "the last one"})
}

// applyImage unpacks an image by our differ.
func applyImage(t testing.TB, r *rig, name string, image []byte) (committed string) {
	t.Helper()
	return applyBy(t, r, name, "", func(u *snapshotter.Unpack) (digest.Digest, int64, error) {
		return u.ApplyImage(ctx, bytes.NewReader(image))
	}, image)
}

// A DAXFS image becomes a layer like any other: containers run from it, layers go
// on top of it, equal files are stored once, and all goes with it.
func TestApplyImage(t *testing.T) {
	r := start(t)
	tarred := apply(t, r, "tar", "", tarOf(t, entry{"else/where", strings.Repeat("0123456789abcdef", 200_000)}))
	before := r.used(t)
	one := applyImage(t, r, "one", sampleImage(t))
	if more := r.used(t) - before; more > 256<<10 {
		t.Errorf("%d bytes more, though most of it was there", more)
	}
	two := apply(t, r, "two", one, tarOf(t, entry{"etc/os", "two"}, entry{"etc/.wh.same", ""}))
	mounts, err := r.Prepare(ctx, "a/9/container", two)
	if err != nil {
		t.Fatal(err)
	}
	lower := lowerOf(t, mounts)
	if got := read(t, lower+"/etc/os") + read(t, lower+"/last") + read(t, lower+"/empty"); got != "twothe last one" {
		t.Errorf("read %q", got)
	}
	if got := read(t, lower+"/big"); got != strings.Repeat("0123456789abcdef", 200_000) {
		t.Errorf("read %d other bytes", len(got))
	}
	if _, err := os.Lstat(lower + "/etc/same"); !os.IsNotExist(err) {
		t.Errorf("whited out: %v", err)
	}
	if left, err := filepath.Glob(r.root + "/snapshots/*/fs/*"); err != nil || len(left) > 0 {
		t.Errorf("files were unpacked to disk: %q, %v", left, err)
	}
	r.check(t)
	for _, name := range []string{"a/9/container", two, one, tarred} {
		if err := r.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if used := r.used(t); used != 0 {
		t.Errorf("%d bytes are in use after all was removed", used)
	}
}

// patch changes 4 bytes of an image's superblock, whose checksum stays right.
func patch(image []byte, off int, v uint32) []byte {
	b := bytes.Clone(image)
	binary.LittleEndian.PutUint32(b[off:], v)
	binary.LittleEndian.PutUint32(b[disk.SuperblockCRC:], disk.SuperblockChecksum(b))
	return b
}

func flip(image []byte, at int) []byte {
	b := bytes.Clone(image)
	b[at] ^= 1
	return b
}

// onMetadata is an image in which all is in order but the place of a file: it
// shows the metadata.
func onMetadata(t testing.TB) []byte {
	t.Helper()
	n := &mkdaxfs.Node{Mode: disk.TypeRegular | 0o644, Size: 4096, Extent: mkdaxfs.Extent{Offset: disk.BlockSize}}
	l, err := mkdaxfs.NewLayout(&mkdaxfs.Tree{Root: &mkdaxfs.Node{Mode: disk.TypeDir, Children: []mkdaxfs.Child{{Name: "f", Node: n}}}}, mkdaxfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	super, meta, err := l.Emit(mkdaxfs.Place{Meta: disk.BlockSize, End: disk.BlockSize + l.MetaSize()})
	if err != nil {
		t.Fatal(err)
	}
	return append(super, meta...)
}

// metadataLast is an image as mkdaxfs writes it into a file.
func metadataLast(t testing.TB) []byte {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := mkdaxfs.NewBuilder(f, mkdaxfs.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, _, err := convert.FromTar(ctx, bytes.NewReader(tarOf(t, entry{"f", "content"})), b, convert.TarOptions{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	tree.Root.SetXattrs(nil)
	if _, err := b.Finish(ctx, tree); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// Images that are not sound, not for us or not for this place are refused with
// the class that says what to do, nothing is published, and all space is back.
func TestApplyImageBad(t *testing.T) {
	good := sampleImage(t)
	meta := disk.BlockSize
	data := bytes.Index(good, []byte("0123456789abcdef"))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	const (
		offVersion, offBlockSize, offTotalHigh, offIncompat, offCompat, offMetaSizeHigh = 4, 8, 20, 120, 136, 172
	)
	for name, c := range map[string]struct {
		image io.Reader
		class func(error) bool
		says  string
	}{
		"empty":              {bytes.NewReader(nil), errdefs.IsInvalidArgument, "truncated"},
		"cut superblock":     {bytes.NewReader(good[:1000]), errdefs.IsInvalidArgument, "truncated"},
		"cut metadata":       {bytes.NewReader(good[:meta+100]), errdefs.IsInvalidArgument, "truncated"},
		"cut file":           {bytes.NewReader(good[:data+100_000]), errdefs.IsInvalidArgument, "truncated"},
		"cut padding":        {bytes.NewReader(good[:len(good)-1]), errdefs.IsInvalidArgument, "truncated"},
		"something behind":   {io.MultiReader(bytes.NewReader(good), strings.NewReader("x")), errdefs.IsInvalidArgument, "behind the end"},
		"archive":            {bytes.NewReader(tarOf(t, entry{"f", strings.Repeat("x", 10_000)})), errdefs.IsInvalidArgument, "magic"},
		"damaged superblock": {bytes.NewReader(flip(good, 300)), errdefs.IsDataLoss, "checksum"},
		"damaged metadata":   {bytes.NewReader(flip(good, meta+1000)), errdefs.IsDataLoss, ""},
		"damaged padding":    {bytes.NewReader(flip(good, len(good)-1)), errdefs.IsDataLoss, "belongs to no file"},
		"file on metadata":   {bytes.NewReader(onMetadata(t)), errdefs.IsDataLoss, "overlaps"},
		"page size":          {bytes.NewReader(patch(good, offBlockSize, 16384)), errdefs.IsFailedPrecondition, "block size 16384, want the page size 4096"},
		"newer version":      {bytes.NewReader(patch(good, offVersion, 0x20000)), errdefs.IsFailedPrecondition, "version 0x20000"},
		"unknown feature":    {bytes.NewReader(patch(good, offIncompat, 1<<5)), errdefs.IsFailedPrecondition, "unknown incompatible features 0x20"},
		"layer index":        {bytes.NewReader(patch(good, offIncompat, 1)), errdefs.IsFailedPrecondition, "part of a pool"},
		"pool image":         {bytes.NewReader(patch(good, offCompat, 3)), errdefs.IsFailedPrecondition, "part of a pool"},
		"public dialect":     {bytes.NewReader(imageOf(t, mkdaxfs.BuildOptions{V8: true}, entry{"f", "x"})), errdefs.IsFailedPrecondition, "version 8"},
		"metadata last":      {bytes.NewReader(metadataLast(t)), errdefs.IsFailedPrecondition, "want 4096"},
		"too large":          {bytes.NewReader(patch(good, offTotalHigh, 1)), errdefs.IsOutOfRange, "want at most"},
		"too much metadata":  {bytes.NewReader(patch(good, offMetaSizeHigh, 1)), errdefs.IsDataLoss, "outside base"},
		"store fails":        {io.MultiReader(bytes.NewReader(good[:data+2_000_000]), failing{}), errdefs.IsUnavailable, "read"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, daxmem.Options{MaxSize: 32 << 20}, ctx, c.image, c.class, c.says)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		refused(t, daxmem.Options{MaxSize: 32 << 20}, cancelled, bytes.NewReader(good), errdefs.IsCanceled, "")
	})
}

// refused applies a bad image and then a good one.
func refused(t *testing.T, opts daxmem.Options, ctx context.Context, image io.Reader, class func(error) bool, says string) {
	t.Helper()
	r := startWith(t, opts)
	key, mounts := prepare(t, r, "one", "")
	u, err := r.Unpack(ctx, mounts)
	if err != nil {
		if u, err = r.Unpack(context.WithoutCancel(ctx), mounts); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := u.ApplyImage(ctx, image); !class(err) || !strings.Contains(err.Error(), says) || errdefs.IsNotImplemented(err) {
		t.Errorf("%v, want an error that says %q", err, says)
	}
	if used := r.used(t); used != 0 {
		t.Errorf("%d bytes are left", used)
	}
	ctx = context.WithoutCancel(ctx)
	if _, _, err := u.ApplyImage(ctx, bytes.NewReader(sampleImage(t))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.ApplyImage(ctx, bytes.NewReader(sampleImage(t))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second layer: %v", err)
	}
	if err := r.Commit(ctx, "one", key); err != nil {
		t.Fatal(err)
	}
	r.check(t)
}

// A pool that is full in the middle of an image gives back what the image had
// taken, and keeps what was there.
func TestApplyImageFull(t *testing.T) {
	r := startWith(t, daxmem.Options{MaxSize: 32 << 20})
	noise := make([]byte, 16<<20)
	state := uint64(1)
	for i := range noise {
		state = state*6364136223846793005 + 1
		noise[i] = byte(state >> 56)
	}
	apply(t, r, "there", "", tarOf(t, entry{"noise", string(noise)}))
	before := r.used(t)
	files := []entry{{"same", string(noise)}}
	for i := range 15 {
		noise[0], noise[1] = byte(i), 'x'
		files = append(files, entry{fmt.Sprint(i), string(noise[:1<<20])})
	}
	_, mounts := prepare(t, r, "one", "")
	u, err := r.Unpack(ctx, mounts)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.ApplyImage(ctx, bytes.NewReader(imageOf(t, mkdaxfs.BuildOptions{}, files[1:]...))); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v", err)
	}
	if used := r.used(t); used != before {
		t.Errorf("%d bytes are in use, %d before", used, before)
	}
	r.check(t)
}

// An image on top of a layer would let it shine through; whoever unpacks in
// parallel says so in a label.
func TestApplyImageOnTop(t *testing.T) {
	r := start(t)
	one := apply(t, r, "one", "", tarOf(t, entry{"etc/os", "one"}))
	for name, c := range map[string]struct {
		parent string
		labels map[string]string
	}{
		"sequential": {one, nil},
		"parallel":   {"", map[string]string{"containerd.io/snapshot/parent-chain-id": ref("one")}},
	} {
		t.Run(name, func(t *testing.T) {
			labels := map[string]string{"containerd.io/snapshot.ref": ref(name)}
			for k, v := range c.labels {
				labels[k] = v
			}
			key := "a/3/extract-1 " + ref(name)
			mounts, err := r.Prepare(ctx, key, c.parent, snapshots.WithLabels(labels))
			if err != nil {
				t.Fatal(err)
			}
			u, err := r.Unpack(ctx, mounts)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := u.ApplyImage(ctx, bytes.NewReader(sampleImage(t))); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "lowest layer") {
				t.Errorf("%v", err)
			}
		})
	}
}

// An image that is not the one that was asked for is not published, however sound
// it is.
func TestApplyImageWrongDigest(t *testing.T) {
	image := sampleImage(t)
	r := start(t)
	for _, right := range []bool{false, true} {
		want := ref("another")
		if right {
			want = fmt.Sprintf("sha256:%x", sha256.Sum256(image))
		}
		mounts, err := r.Prepare(ctx, fmt.Sprintf("a/1/extract-1-%v %s", right, ref("one")), "", snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref": ref("one"), "containerd.io/snapshot/diff-id": want,
		}))
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.Unpack(ctx, mounts)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = u.ApplyImage(ctx, bytes.NewReader(image))
		if right && err != nil {
			t.Error(err)
		}
		if !right && (!errdefs.IsDataLoss(err) || r.used(t) != 0) {
			t.Errorf("%v; %d bytes are in use", err, r.used(t))
		}
	}
}
