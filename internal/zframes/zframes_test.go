package zframes_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/daxfs/containerd-daxfs/internal/zframes"
)

// sample is half noise, half repetition.
func sample(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(i / 7)
		if i/5000%2 == 0 {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func compress(t testing.TB, in []byte, concurrency int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zframes.NewWriter(&out, zstd.SpeedFastest, concurrency)
	if err != nil {
		t.Fatal(err)
	}
	// Pieces that do not fit into frames.
	if _, err := io.CopyBuffer(w, struct{ io.Reader }{bytes.NewReader(in)}, make([]byte, 70_000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func read(t testing.TB, b []byte, concurrency int) ([]byte, error) {
	t.Helper()
	r, err := zframes.NewReader(bytes.NewReader(b), concurrency)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

// The same input makes the same bytes on one and on several processors, which an
// ordinary decoder and our own read back; so does the zstd program.
func TestRoundTrip(t *testing.T) {
	for _, n := range []int{1, zframes.FrameSize, 2*zframes.FrameSize + 12345} {
		in := sample(n)
		one, four := compress(t, in, 1), compress(t, in, 4)
		if !bytes.Equal(one, four) {
			t.Fatalf("%d bytes: one processor makes %d bytes, four make %d others", n, len(one), len(four))
		}
		plain, err := zstd.NewReader(bytes.NewReader(one))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, in) {
			t.Errorf("%d bytes: an ordinary decoder reads %d bytes: %v", n, len(got), err)
		}
		plain.Close()
		for _, c := range []int{0, 1, 3} {
			if got, err := read(t, one, c); err != nil || !bytes.Equal(got, in) {
				t.Errorf("%d bytes: read %d with concurrency %d: %v", n, len(got), c, err)
			}
		}
		if path, err := exec.LookPath("zstd"); err == nil {
			cmd := exec.Command(path, "-dc")
			cmd.Stdin = bytes.NewReader(one)
			if got, err := cmd.Output(); err != nil || !bytes.Equal(got, in) {
				t.Errorf("%d bytes: zstd -d writes %d: %v", n, len(got), err)
			}
		}
	}
}

// Streams of other compressors are read too.
func TestOrdinaryStream(t *testing.T) {
	in := sample(3 << 20)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := enc.EncodeAll(in, nil)
	if got, err := read(t, b, 2); err != nil || !bytes.Equal(got, in) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
	if _, err := read(t, b[:len(b)/2], 2); !errors.Is(err, zframes.ErrTruncated) || !errors.Is(err, zframes.ErrBad) {
		t.Errorf("cut: %v", err)
	}
}

// What is not sound is an error at the place where it is, and a failing source
// keeps its own error.
func TestBadStreams(t *testing.T) {
	in := sample(3 * zframes.FrameSize)
	good := compress(t, in, 2)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	// A frame that is larger than all others, which one cannot see before.
	bomb := enc.EncodeAll(make([]byte, zframes.FrameSize+1), nil)
	bomb = append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, byte(len(bomb)), byte(len(bomb) >> 8), byte(len(bomb) >> 16), 0}, bomb...)
	flipped := bytes.Clone(good)
	flipped[len(good)/2] ^= 1
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"cut":          {good[:len(good)/2], zframes.ErrTruncated},
		"cut header":   {append(bytes.Clone(good), good[:5]...), zframes.ErrTruncated},
		"flipped":      {flipped, zframes.ErrBad},
		"bomb":         {bomb, zframes.ErrBad},
		"garbage":      {append(bytes.Clone(good), bytes.Repeat([]byte("x"), 100)...), zframes.ErrBad},
		"other frames": {append(bytes.Clone(good), bomb[12:]...), zframes.ErrBad},
	} {
		got, err := read(t, c.b, 2)
		if !errors.Is(err, c.want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.HasPrefix(in, got) && name != "bomb" {
			t.Errorf("%s: wrong bytes before the error", name)
		}
	}
	lost := errors.New("lost")
	r, err := zframes.NewReader(io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(lost)), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, lost) || errors.Is(err, zframes.ErrBad) {
		t.Errorf("failing source: %v", err)
	}
}

// Neither side hangs when the other gives up.
func TestGiveUp(t *testing.T) {
	full := errors.New("full")
	w, err := zframes.NewWriter(failAfter{full}, zstd.SpeedFastest, 2)
	if err != nil {
		t.Fatal(err)
	}
	in := sample(zframes.FrameSize)
	for range 20 {
		if _, err = w.Write(in); err != nil {
			break
		}
	}
	if !errors.Is(err, full) {
		t.Errorf("write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("close: %v", err)
	}
	r, err := zframes.NewReader(bytes.NewReader(compress(t, sample(4*zframes.FrameSize), 2)), 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("a closed reader reads on")
	}
}

type failAfter struct{ err error }

func (f failAfter) Write([]byte) (int, error) { return 0, f.err }

func BenchmarkReader(b *testing.B) {
	in := sample(16 * zframes.FrameSize)
	z := compress(b, in, 2)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		r, err := zframes.NewReader(bytes.NewReader(z), 2)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
