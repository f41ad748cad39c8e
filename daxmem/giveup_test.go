package daxmem

import (
	"errors"
	"strings"
	"testing"
)

// An open that fails leaves the pool as it was: with no owner, and no seat taken.
func TestFailedOpenGivesUp(t *testing.T) {
	s := newShared(t, 16*mib, asKernel(1))
	addLayer(t, s.Pool, "layer", randomBytes(1, 4*mib))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	small := asKernel(2)
	small.MaxSize = 2 * mib
	if _, err := Open(bg, unlocked(t, s.path, toOwn), small); !errors.Is(err, ErrTooSmall) {
		t.Fatalf("open with less than is in use: %v, want %v", err, ErrTooSmall)
	}
	p, err := Open(bg, unlocked(t, s.path, toOwn), asKernel(3))
	if err != nil {
		t.Fatalf("another kernel, after an open that failed: %v", err)
	}
	defer p.Close()
	seats, err := p.Seats()
	if err != nil {
		t.Fatal(err)
	}
	if len(seats) != 1 {
		t.Errorf("seats %v, want that of the one that opened the pool", seats)
	}
}

// Daemons whose directories differ far from the end are told apart.
func TestHolderName(t *testing.T) {
	long := strings.Repeat("/very/long", 10)
	a, b := HolderName("a:"+long), HolderName("b:"+long)
	if a == b || len(a) > identityText || len(b) > identityText {
		t.Errorf("%q and %q: want two names of at most %d bytes", a, b, identityText)
	}
	if short := "host:/var/lib/containerd-daxfs"; HolderName(short) != short {
		t.Errorf("HolderName(%q) = %q", short, HolderName(short))
	}
	if HolderName("a:"+long) != a {
		t.Error("the same holder has two names")
	}
}
