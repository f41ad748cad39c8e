package daxmem

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// inspect opens a pool in a file beside its owner.
func inspect(t testing.TB, path string) *Pool {
	t.Helper()
	r, err := OpenFileReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := OpenReadOnly(bg, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// damage inverts a byte of the pool's region.
func damage(t testing.TB, p *Pool, off int64) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := p.region.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := p.region.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func names(records []*Record) (out []string) {
	for _, r := range records {
		out = append(out, r.Name())
	}
	slices.Sort(out)
	return out
}

// A damaged extent is named with all layers that have it, and all images and
// chains that need those.
func TestCheckNames(t *testing.T) {
	p, path := newPool(t, 64*mib, manual)
	shared := randomBytes(1, 9000)
	a := addLayer(t, p, "a", shared, randomBytes(2, 5000))
	b := addLayer(t, p, "b", shared)
	addLayer(t, p, "c", randomBytes(3, 7000))
	img := addImage(t, p, "iab", "a", "b")
	other := addImage(t, p, "ib", "b", "c")
	addImage(t, p, "ic", "c")
	chain, err := p.PublishChain(bg, key("chain"), key("a"), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	damage(t, p, extentOf(t, p, shared).off+8999)
	for name, look := range map[string]*Pool{"owner": p, "beside the owner": inspect(t, path)} {
		rep, err := look.Check(bg, CheckOptions{Data: true})
		if err != nil || len(rep.Problems) != 1 {
			t.Fatalf("%s: %+v, %v", name, rep, err)
		}
		got := rep.Problems[0]
		if want := names([]*Record{a, b}); !slices.Equal(names(got.Records), want) {
			t.Errorf("%s: layers %v, want %v", name, names(got.Records), want)
		}
		if want := names([]*Record{img, other, chain}); !slices.Equal(names(got.DrawOn), want) {
			t.Errorf("%s: drawn on by %v, want %v", name, names(got.DrawOn), want)
		}
	}
	if rep, err := p.Check(bg, CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("without data: %+v, %v", rep, err)
	}
}

func extentOf(t testing.TB, p *Pool, content []byte) *extent {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byDigest[hashBytes(content)]
	if e == nil {
		t.Fatal("no such extent")
	}
	return e
}

// An extent that one layer gave up during the check, and another has still, is
// looked at all the same; one that all gave up is not.
func TestCheckDuringRemoval(t *testing.T) {
	for _, all := range []bool{false, true} {
		for _, first := range []string{"a", "b"} {
			p, path := newPool(t, 64*mib, manual)
			content := randomBytes(1, 9000)
			addLayer(t, p, "a", content)
			addLayer(t, p, "b", content)
			damage(t, p, extentOf(t, p, content).off)
			gone := []string{first}
			if all {
				gone = []string{"a", "b"}
			}
			rep, err := inspect(t, path).Check(bg, CheckOptions{Data: true, Progress: func(int64, int64) {
				for _, name := range gone {
					if err := p.Remove(bg, KindLayer, key(name)); err != nil {
						t.Error(err)
					}
				}
				gone = nil
			}})
			if err != nil || len(rep.Problems) != 1 && !all || len(rep.Problems) != 0 && all {
				t.Errorf("%s removed, all %t: %+v, %v", first, all, rep, err)
			}
		}
	}
}

func TestCheckRate(t *testing.T) {
	p, _ := newPool(t, 64*mib, manual)
	addLayer(t, p, "a", randomBytes(1, 3*mib), randomBytes(2, mib))
	start := time.Now()
	rep, err := p.Check(bg, CheckOptions{Data: true, Rate: 20 * mib})
	if err != nil || !rep.OK() || rep.Bytes < 4*mib {
		t.Fatalf("%+v, %v", rep, err)
	}
	// 4 MiB at 20 MiB/s are 200 ms, less the slack at both ends.
	if took := time.Since(start); took < 200*time.Millisecond-2*paceSlack {
		t.Errorf("%d bytes at 20 MiB/s took %v", rep.Bytes, took)
	}
	if _, err := p.Check(bg, CheckOptions{Rate: -1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative rate: %v, want %v", err, ErrInvalid)
	}
	ctx, stop := context.WithTimeout(bg, 50*time.Millisecond)
	defer stop()
	start = time.Now()
	if _, err := p.Check(ctx, CheckOptions{Data: true, Rate: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
}

// Many small reads are not slower than their rate, beyond what a sleep takes.
func TestPaceSmall(t *testing.T) {
	p := pace{rate: 100 * mib}
	start := time.Now()
	for range 2000 {
		if err := p.wait(bg, 4096); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(start) // 78 ms
	if took < 78*time.Millisecond-2*paceSlack || took > 2*time.Second {
		t.Errorf("8 MB at 100 MiB/s took %v", took)
	}
}
