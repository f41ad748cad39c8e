package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/engine"
)

// FindRefs, which looks from outside, and Live, which decides what is freed,
// have to agree on what is in use.
func TestFindRefsAgreesWithLive(t *testing.T) {
	ctx := context.Background()
	ms, err := storage.NewMetaStore(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ms.Close() })
	if live, err := Live(ctx, ms); err != nil || len(live.layers) != 0 {
		t.Fatalf("of nothing: %+v, %v", live, err)
	}
	label := func(v string) snapshots.Opt { return snapshots.WithLabels(map[string]string{LabelLayer: v}) }
	layer := func(n byte) string { return key{n}.String() }
	var infos []snapshots.Info
	if err := ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		commit := func(name, parent, layer string) {
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "a-"+name, parent); err != nil {
				t.Fatal(err)
			}
			if _, err := storage.CommitActive(ctx, "a-"+name, name, snapshots.Usage{}, label(layer)); err != nil {
				t.Fatal(err)
			}
		}
		commit("base", "", layer(1))
		commit("app", "base", layer(2))
		commit("same", "base", layer(2)) // the same chain under another name
		commit("alone", "", layer(2))    // the same layer in another chain
		commit("bad", "base", "not a key")
		commit("onbad", "bad", layer(3))
		for key, parent := range map[string]string{"c1": "app", "c2": "same", "empty": "", "broken": "onbad"} {
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "unpack", "base", snapshots.WithLabels(map[string]string{labelTarget: "x"})); err != nil {
			t.Fatal(err)
		}
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	live, err := Live(ctx, ms)
	if err != nil {
		t.Fatal(err)
	}
	refs := FindRefs(infos)
	if len(live.layers) != len(refs.Layers) || len(live.images) != len(refs.Images) {
		t.Errorf("Live has %d layers and %d images, FindRefs %d and %d", len(live.layers), len(live.images), len(refs.Layers), len(refs.Images))
	}
	for k := range live.layers {
		if !refs.Has(daxmem.KindLayer, k) {
			t.Errorf("layer %v is live, but not found", key(k))
		}
	}
	for k := range live.images {
		if !refs.Has(daxmem.KindImage, k) {
			t.Errorf("image %v is live, but not found", key(k))
		}
	}
	app := chain{key{1}, key{2}}.key()
	if got := fmt.Sprint(refs.Layers[key{2}], refs.Images[app], refs.Users[app]); got != "[alone app same] [app same] [c1 c2]" {
		t.Errorf("app: %s", got)
	}
	if len(refs.Damaged) != 2 || refs.Damaged["bad"] == "" || refs.Damaged["broken"] == "" {
		t.Errorf("damaged: %v", refs.Damaged)
	}
}

// A walk over no snapshots finds none; it is no error.
func TestWalkOfNothing(t *testing.T) {
	ctx := context.Background()
	ms, err := openMetadata(ctx, filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshotter{ms: ms}
	t.Cleanup(func() { _ = ms.Close() })
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "one", "")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return errdefs.ErrNotFound }); !errdefs.IsNotFound(err) {
		t.Errorf("an error of the function: %v", err)
	}
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "!"); err == nil {
		t.Error("a bad filter was taken")
	}
}

func TestHeldImages(t *testing.T) {
	root := t.TempDir()
	if held, err := HeldImages(root); err != nil || len(held) != 0 {
		t.Errorf("of nothing: %v, %v", held, err)
	}
	im := newImages(filepath.Join(root, "images"))
	if err := os.Mkdir(im.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	save := func(k key, boot string, superblocks ...string) {
		t.Helper()
		img := &image{key: k, mount: &mountRecord{Mount: engine.Mount{Engine: "e", Method: "m", Superblocks: superblocks}, Offset: 7, Boot: boot}}
		if err := im.save(img); err != nil {
			t.Fatal(err)
		}
	}
	save(key{1}, bootID())
	save(key{2}, "another boot")
	save(key{3}, bootID(), "a superblock that is gone")
	if err := os.WriteFile(filepath.Join(im.dir, "notes.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := HeldImages(root)
	if err != nil || len(held) != 1 || held[0].Key != (key{1}) || held[0].Method != "m" || held[0].Offset != 7 || held[0].Mounted {
		t.Errorf("%+v, %v", held, err)
	}
	if err := os.Mkdir(im.home(key{4}), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.record(key{4}), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err = HeldImages(root)
	if err == nil || len(held) != 1 {
		t.Errorf("with a damaged record: %+v, %v", held, err)
	}
}
