package integration

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/daxfs/containerd-daxfs/integration/fstree"
	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/ocitree"
)

// Images travel as DAXFS images: converted where they were pulled, pushed and
// pulled again by the stock ctr, and turned back into an ordinary layer, they
// show what the layers they were made of say.
func TestConvertImage(t *testing.T) {
	names := []string{"nasty", "rootopaque"}
	if !testing.Short() {
		names = append(names, "debian")
	}
	l := lab.New(t, lab.Config{})
	l.Registry.AcceptPushes(filepath.Join(l.Dir, "tmp"))
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			for _, compression := range []string{"none", "zstd"} {
				t.Run(compression, func(t *testing.T) { convertImage(t, l, name, compression) })
			}
		})
	}
}

func convertImage(t *testing.T, l *lab.Lab, name, compression string) {
	l = l.For(t)
	want, _ := l.Expected(name, ocitree.Options{})
	here := l.Namespace("here-" + name + compression)
	l.MustPull(here, name, lab.Daxfs, lab.Transfer)
	// What the pool had already was not fetched, and cannot be converted.
	if _, err := l.Ctr(here, "content", "fetch", "--plain-http", l.Ref(name)); err != nil {
		t.Fatal(err)
	}
	made := name + "-" + compression
	convert := func(to string) string {
		t.Helper()
		out, err := l.CtrDaxfs(here, "images", "convert", "--daxfs", "--daxfs-compression", compression, l.Ref(name), to)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	first := convert(l.Ref(made))
	if again := convert(l.Ref(made + "-again")); again != first {
		t.Errorf("a second conversion makes %s, want %s", again, first)
	}
	// It runs at once where it was made: the client unpacks it.
	if _, err := l.CtrDaxfs(here, "run", "--rm", "--null-io", "--runc-root", l.RuncRoot(), "--snapshotter", lab.Daxfs, l.Ref(made), "c-"+made, "true"); err != nil {
		t.Error(err)
	}
	sameAs(t, l, here, made, lab.Daxfs, want)
	if _, err := l.Ctr(here, "images", "push", "--plain-http", l.Ref(made)); err != nil {
		t.Fatal(err)
	}

	// Elsewhere, by every way of pulling, into a pool that has nothing of it.
	l.RemoveImage(here, made)
	l.RemoveImage(here, made+"-again")
	methods := lab.Methods
	if compression != "none" {
		methods = []lab.Method{lab.Transfer}
	}
	for _, method := range methods {
		there := l.Namespace("there-" + made + string(method))
		emptyPool(t, l)
		start := time.Now()
		img := l.MustPull(there, made, lab.Daxfs, method)
		took := time.Since(start)
		// Another namespace gets what the pool has, and fetches no layer.
		l.Registry.Blobs()
		start = time.Now()
		again := l.Namespace("again-" + made + string(method))
		l.MustPull(again, made, lab.Daxfs, lab.Transfer)
		t.Logf("%s: pulled in %v, what the pool has in %v", method, took, time.Since(start))
		if blobs := l.Registry.Blobs(); len(blobs) > 0 {
			t.Errorf("%s: blobs fetched of an image that is there: %s", method, blobs)
		}
		l.RemoveImage(again, made)
		sameAs(t, l, there, made, lab.Daxfs, want)
		if out, err := l.Run(there, img, lab.Daxfs, "true"); err != nil {
			t.Errorf("%s: run true: %v %s", method, err, out)
		}
		if method == lab.Transfer {
			exportImage(t, l, there, made, want)
		}
		l.RemoveImage(there, made)
		if left := l.Snapshots(there, lab.Daxfs); len(left) > 0 {
			t.Errorf("%s: snapshots left after the image was removed: %q", method, left)
		}
	}
	l.RemoveImage(here, name)
}

// emptyPool makes the daemon give back what no snapshot uses.
func emptyPool(t *testing.T, l *lab.Lab) {
	t.Helper()
	if out, err := l.Daxfsctl("pool", "gc"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}

// sameAs compares an image's tree.
func sameAs(t *testing.T, l *lab.Lab, ctx context.Context, name, snapshotter string, want fstree.Tree) {
	t.Helper()
	img, err := l.Client().GetImage(ctx, l.Ref(name))
	if err != nil {
		t.Fatal(err)
	}
	if diffs := fstree.Diff(want, l.ViewTree(ctx, img, snapshotter)); len(diffs) > 0 {
		t.Errorf("%s in %s: %d differences, wanted != got:\n%s", name, snapshotter, len(diffs), fstree.Format(diffs, 40))
	}
}

// exportImage turns a DAXFS image into an ordinary one. An independent reader of
// layers judges what is in it, and overlayfs must show that.
func exportImage(t *testing.T, l *lab.Lab, ctx context.Context, made string, want fstree.Tree) {
	t.Helper()
	plain := made + "-tar"
	var digests []string
	for _, to := range []string{l.Ref(plain), l.Ref(plain + "-again")} {
		out, err := l.CtrDaxfs(ctx, "images", "export-oci", l.Ref(made), to)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, out)
	}
	if digests[0] != digests[1] {
		t.Errorf("exported twice: %q", digests)
	}
	if _, err := l.Ctr(ctx, "images", "push", "--plain-http", l.Ref(plain)); err != nil {
		t.Fatal(err)
	}
	if got := flattened(t, l, plain, ocitree.Options{}); len(fstree.Diff(want, got)) > 0 {
		t.Errorf("exported layer, wanted != got:\n%s", fstree.Format(fstree.Diff(want, got), 40))
	}
	there := l.Namespace("overlay-" + made)
	l.MustPull(there, plain, lab.Overlayfs, lab.Transfer)
	img, err := l.Client().GetImage(there, l.Ref(plain))
	if err != nil {
		t.Fatal(err)
	}
	overlay := l.ViewTree(there, img, lab.Overlayfs)
	walked := flattened(t, l, plain, ocitree.Options{Walking: true})
	rest, _ := fstree.Excused(fstree.Diff(overlay, walked), func(d fstree.Difference) (string, bool) {
		return rootTime, d.Path == "." && d.Field == "mtime"
	})
	if len(rest) > 0 {
		t.Errorf("overlayfs shows something else than the exported layer:\n%s", fstree.Format(rest, 40))
	}
	for _, n := range []string{plain, plain + "-again"} {
		l.RemoveImage(ctx, n)
		l.RemoveImage(there, n)
	}
}

// pushed is an image with one layer.
type pushed struct {
	images.Layer
	manifest digest.Digest
}

// pushedIndex is the last image of an index that was pushed.
func pushedIndex(t *testing.T, l *lab.Lab, name string) pushed {
	t.Helper()
	dir := filepath.Join(l.Dir, "tmp", name)
	layout := &images.Layout{Dir: dir}
	read := func(path string, v any) {
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index ocispec.Index
	var m ocispec.Manifest
	var c ocispec.Image
	read(filepath.Join(dir, ocispec.ImageIndexFile), &index)
	read(layout.BlobPath(index.Manifests[0].Digest), &index)
	last := index.Manifests[len(index.Manifests)-1].Digest
	read(layout.BlobPath(last), &m)
	read(layout.BlobPath(m.Config.Digest), &c)
	return pushed{images.Layer{Descriptor: m.Layers[0], DiffID: c.RootFS.DiffIDs[0]}, last}
}

// flattened is what a pushed image with an ordinary layer must look like.
func flattened(t *testing.T, l *lab.Lab, name string, o ocitree.Options) fstree.Tree {
	t.Helper()
	layout := &images.Layout{Dir: filepath.Join(l.Dir, "tmp", name)}
	layers, err := layout.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 {
		t.Fatalf("%s has %d layers, want 1", name, len(layers))
	}
	r, err := layout.Open(layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tree, _, err := ocitree.Flatten([]io.Reader{r}, o)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// One tag serves both: whoever knows nothing of DAXFS gets the ordinary image,
// whoever asks for it by os.features gets the other and fetches nothing else.
func TestConvertIndex(t *testing.T) {
	l := lab.New(t, lab.Config{})
	l.Registry.AcceptPushes(filepath.Join(l.Dir, "tmp"))
	here := l.Namespace("here")
	want, _ := l.Expected("rootopaque", ocitree.Options{})
	l.MustPull(here, "rootopaque", lab.Daxfs, lab.Transfer)
	if _, err := l.CtrDaxfs(here, "images", "convert", "--daxfs", "--daxfs-compression", "zstd", "--index", l.Ref("rootopaque"), l.Ref("both")); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Ctr(here, "images", "push", "--plain-http", l.Ref("both")); err != nil {
		t.Fatal(err, out)
	}
	l.RemoveImage(here, "both")
	l.RemoveImage(here, "rootopaque")
	l.Collect()
	emptyPool(t, l)

	// containerd fetches the configurations of all images of an index.
	isLayer := map[digest.Digest]bool{}
	layers, err := l.Image("rootopaque").Layers()
	if err != nil {
		t.Fatal(err)
	}
	made := pushedIndex(t, l, "both")
	for _, layer := range append(layers, made.Layer) {
		isLayer[layer.Digest] = true
	}

	const ours = "linux(+daxfs)/" + runtime.GOARCH
	for _, c := range []struct {
		ns, snapshotter, ref, platform string
		layers                         int // to be fetched; containerd keeps a blob once for all namespaces
	}{
		{"overlayfs", lab.Overlayfs, l.Ref("both"), "", 2},
		{"ordinary", lab.Daxfs, l.Ref("both"), "", 0},
		// By its digest it comes alone. By the tag containerd's transfer service
		// brings what is ordinary too, since that fits as well.
		{"digest", lab.Daxfs, strings.TrimSuffix(l.Ref("both"), ":latest") + "@" + made.manifest.String(), "", 1},
		{"tag", lab.Daxfs, l.Ref("both"), ours, 0},
	} {
		t.Run(c.ns, func(t *testing.T) {
			l := l.For(t)
			ctx := l.Namespace(c.ns)
			var args []string
			if c.platform != "" {
				args = []string{"--platform", c.platform}
			}
			l.Registry.Blobs()
			if _, err := l.Ctr(ctx, slices.Concat([]string{"images", "pull", "--plain-http", "--snapshotter", c.snapshotter}, args, []string{c.ref})...); err != nil {
				t.Fatal(err)
			}
			layers := slices.DeleteFunc(l.Registry.Blobs(), func(d digest.Digest) bool { return !isLayer[d] })
			if len(layers) != c.layers {
				t.Errorf("fetched layers %s, want %d", layers, c.layers)
			}
			if _, err := l.Ctr(ctx, slices.Concat([]string{"run", "--rm", "--null-io", "--runc-root", l.RuncRoot(), "--snapshotter", c.snapshotter}, args, []string{c.ref, "c-" + c.ns, "true"})...); err != nil {
				t.Error(err)
			}
			if c.snapshotter != lab.Daxfs {
				return
			}
			i, err := l.Client().ImageService().Get(ctx, c.ref)
			if err != nil {
				t.Fatal(err)
			}
			m := platforms.DefaultStrict()
			if c.platform != "" {
				m = platforms.Only(platforms.MustParse(c.platform))
			}
			img := client.NewImageWithPlatform(l.Client(), i, m)
			if isMade := l.ChainID(ctx, img) == made.DiffID.String(); isMade != (c.ns == "digest" || c.ns == "tag") {
				t.Errorf("the image is the DAXFS one: %v", isMade)
			}
			if diffs := fstree.Diff(want, l.ViewTree(ctx, img, c.snapshotter)); len(diffs) > 0 {
				t.Errorf("%d differences, wanted != got:\n%s", len(diffs), fstree.Format(diffs, 40))
			}
		})
	}
}

// ctr's own conversions go on working on images in our snapshotter, with either
// program, and what they make runs.
func TestStockConvert(t *testing.T) {
	l := lab.New(t, lab.Config{})
	ctx := l.Namespace("stock")
	l.Image("rootopaque")
	l.MustPull(ctx, "rootopaque", lab.Daxfs, lab.Transfer)
	want, _ := l.Expected("rootopaque", ocitree.Options{})
	for name, ctr := range map[string]func(context.Context, ...string) (string, error){"ctr": l.Ctr, "ctr-daxfs": l.CtrDaxfs} {
		if _, err := ctr(ctx, "images", "convert", "--uncompress", "--oci", l.Ref("rootopaque"), l.Ref(name)); err != nil {
			t.Fatal(err)
		}
		if _, err := ctr(ctx, "run", "--rm", "--null-io", "--runc-root", l.RuncRoot(), "--snapshotter", lab.Daxfs, l.Ref(name), "c-"+name, "true"); err != nil {
			t.Error(err)
		}
		sameAs(t, l, ctx, name, lab.Daxfs, want)
	}
	// Of an image in a DAXFS layer there is nothing to be uncompressed by others.
	if _, err := l.CtrDaxfs(ctx, "images", "convert", "--daxfs", l.Ref("rootopaque"), l.Ref("made")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Ctr(ctx, "images", "convert", "--oci", l.Ref("made"), l.Ref("made-oci")); err != nil {
		t.Error(err)
	}
	if _, err := l.CtrDaxfs(ctx, "images", "convert", "--index", l.Ref("rootopaque"), l.Ref("bad")); err == nil || !strings.Contains(err.Error(), "--index is for --daxfs") {
		t.Errorf("--index alone: %v", err)
	}
}

// A DAXFS image that the pool has lost in a reboot is read from its blob again.
func TestConvertedImageComesBack(t *testing.T) {
	l := lab.New(t, lab.Config{Memory: true})
	ctx := l.Namespace("reboot")
	l.Image("rootopaque")
	l.MustPull(ctx, "rootopaque", lab.Daxfs, lab.Transfer)
	if _, err := l.CtrDaxfs(ctx, "images", "convert", "--daxfs", "--daxfs-compression", "zstd", l.Ref("rootopaque"), l.Ref("made")); err != nil {
		t.Fatal(err)
	}
	img, err := l.Client().GetImage(ctx, l.Ref("made"))
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Unpack(ctx, lab.Daxfs); err != nil {
		t.Fatal(err)
	}
	want := l.ViewTree(ctx, img, lab.Daxfs)
	l.RemoveImage(ctx, "rootopaque")
	l.Registry.Blobs()
	l.Reboot()
	if img, err = l.Client().GetImage(ctx, l.Ref("made")); err != nil {
		t.Fatal(err)
	}
	same(t, "the image after a reboot", want, l.ViewTree(ctx, img, lab.Daxfs))
	if out, err := l.Run(ctx, img, lab.Daxfs, "true"); err != nil {
		t.Errorf("run true: %v %s", err, out)
	}
	if got := l.Registry.Blobs(); len(got) > 0 {
		t.Errorf("fetched %v", got)
	}
}
