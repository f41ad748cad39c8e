package daxmem

import (
	"errors"
	"reflect"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPinAndUse(t *testing.T) {
	p, _ := newPool(t, 16*mib, manual)
	addLayer(t, p, "l", randomBytes(1, 100))
	img := addImage(t, p, "i", "l")
	if err := p.Remove(bg, KindLayer, key("l")); !errors.Is(err, ErrInUse) || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a used layer: %v", err)
	}
	_, release, err := p.Pin(KindImage, key("i"))
	if err != nil {
		t.Fatal(err)
	}
	_, release2, err := p.PinAt(img.Offset)
	if err != nil {
		t.Fatal(err)
	}
	release()
	release() // once only
	if err := p.Remove(bg, KindImage, key("i")); !errors.Is(err, ErrInUse) {
		t.Errorf("remove a pinned image: %v", err)
	}
	rep, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false)
	if err != nil || len(rep.Removed) != 0 {
		t.Errorf("collect took a pinned image: %+v %v", rep, err)
	}
	release2()
	if err := p.Remove(bg, KindImage, key("i")); err != nil {
		t.Error(err)
	}
	if err := p.Remove(bg, KindImage, key("i")); !errdefs.IsNotFound(err) {
		t.Errorf("remove twice: %v", err)
	}
	if _, _, err := p.Pin(KindImage, key("i")); !errdefs.IsNotFound(err) {
		t.Errorf("pin what is gone: %v", err)
	}
}

func TestCollect(t *testing.T) {
	p, _ := newPool(t, 32*mib, manual)
	shared := randomBytes(1, 9000)
	addLayer(t, p, "a", shared, randomBytes(2, 100))
	addLayer(t, p, "b", shared, randomBytes(3, 100))
	addLayer(t, p, "c", shared, randomBytes(4, 100))
	addImage(t, p, "ia", "a")
	addImage(t, p, "ib", "a", "b")
	live := func(k Kind, id [32]byte) bool { return k == KindImage && id == key("ia") }
	dry, err := p.Collect(bg, live, true)
	if err != nil {
		t.Fatal(err)
	}
	before := mustStat(t, p)
	rep, err := p.Collect(bg, live, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Removed) != 3 || !reflect.DeepEqual(rep, dry) {
		t.Errorf("got %+v, dry run %+v", rep, dry)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	after := mustStat(t, p)
	if after.Free-before.Free != rep.Bytes {
		t.Errorf("freed %d bytes, report says %d", after.Free-before.Free, rep.Bytes)
	}
	if after.LayerCount != 1 || after.ImageCount != 1 {
		t.Errorf("%+v", after)
	}
	mustCheck(t, p)
	if _, err := p.Collect(bg, func(Kind, [32]byte) bool { return false }, false); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(bg); err != nil {
		t.Fatal(err)
	}
	mustEmpty(t, p)
}

// What another kernel pins while the owner collects stays, with what it needs,
// and nothing else does.
func TestCollectBesidePin(t *testing.T) {
	p := newShared(t, 64*mib, manual)
	r := p.attach(t, asKernel(1))
	for i, name := range []string{"pinned", "other"} {
		addLayer(t, p.Pool, name, randomBytes(uint64(i), 5000))
		addImage(t, p.Pool, "i"+name, name)
	}
	pin := sync.OnceFunc(func() {
		_, unpin, err := r.Pin(KindImage, key("ipinned"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(unpin)
	})
	rep, err := p.Collect(bg, func(kind Kind, _ [32]byte) bool {
		if kind == KindLayer { // the images have been looked at by now
			pin()
		}
		return false
	}, false)
	if err != nil || len(rep.Removed) != 2 {
		t.Fatalf("collect: %+v, %v, want what is not pinned", rep, err)
	}
	for name, there := range map[string]bool{"pinned": true, "other": false} {
		_, err := p.Image(key("i" + name))
		_, lerr := p.Layer(key(name))
		if there != (err == nil) || there != (lerr == nil) {
			t.Errorf("%s: image %v, layer %v, want there %v", name, err, lerr, there)
		}
	}
	mustCheck(t, p.Pool)
}
