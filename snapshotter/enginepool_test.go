package snapshotter_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/snapshotter"
)

// A pool gives an image to try, and takes it back, however full it is.
func TestEnginePool(t *testing.T) {
	for _, selfContained := range []bool{false, true} {
		r := startWith(t, daxmem.Options{SelfContained: selfContained})
		p := snapshotter.EnginePool(r.pool)
		if p.Region != r.pool.Region() || p.Shared == selfContained {
			t.Errorf("%+v", p)
		}
		trial, err := p.Trial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !trial.Own || trial.Offset == 0 || trial.Size == 0 {
			t.Errorf("%+v", trial)
		}
		trial.Close()
		if used := r.used(t); used != 0 {
			t.Errorf("%d bytes in use", used)
		}
	}
	// With a maximum of what is in use.
	r := start(t)
	r.base(t)
	if _, err := r.Prepare(ctx, "c", "base"); err != nil {
		t.Fatal(err)
	}
	st, err := r.pool.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.root, "pool")
	if r.pool, err = daxmem.OpenOrCreate(ctx, path, daxmem.Options{MaxSize: st.Size - st.Free}); err != nil {
		t.Fatal(err)
	}
	defer r.pool.Close()
	trial, err := snapshotter.EnginePool(r.pool).Trial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := r.pool.Region().ReadAt(head, trial.Offset); err != nil || trial.Own || !bytes.Equal(head, []byte("5xad")) {
		t.Errorf("%+v begins with %q, %v", trial, head, err)
	}
	for _, rec := range r.pool.Records() {
		if rec.Kind == daxmem.KindImage && rec.Pins != 1 {
			t.Errorf("%s is pinned %d times", rec.Name(), rec.Pins)
		}
	}
	trial.Close()
}
