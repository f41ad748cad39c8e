package daxmem

import (
	"errors"
	"reflect"
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
