package gunzip

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// program is the one that all machines have.
const program = "gzip"

func sample(t *testing.T) (plain, packed []byte) {
	t.Helper()
	plain = make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(plain)
	copy(plain[1<<20:], make([]byte, 1<<20))
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return plain, b.Bytes()
}

func TestReader(t *testing.T) {
	plain, packed := sample(t)
	for name, source := range map[string]io.Reader{
		"whole": bytes.NewReader(packed), "in pieces": iotest.HalfReader(bytes.NewReader(packed)),
	} {
		r, err := NewReader(program, source)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(got), len(plain), err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: behind the end: %d, %v", name, n, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}

func TestReaderFails(t *testing.T) {
	_, packed := sample(t)
	broken := errors.New("broken")
	damaged := bytes.Clone(packed)
	damaged[len(damaged)-6] ^= 1 // of the checksum
	for _, c := range []struct {
		name   string
		source io.Reader
		is     error
		says   string
	}{
		{"cut", bytes.NewReader(packed[:len(packed)/2]), nil, "unexpected end of file"},
		{"damaged", bytes.NewReader(damaged), nil, "crc error"},
		{"no gzip", strings.NewReader("hello"), nil, "not in gzip format"},
		{"empty", strings.NewReader(""), nil, "unexpected end of file"},
		{"source", io.MultiReader(bytes.NewReader(packed[:1000]), iotest.ErrReader(broken)), broken, "feed"},
	} {
		r, err := NewReader(program, c.source)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, r)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
		if again, _ := r.Read(make([]byte, 1)); again != 0 {
			t.Errorf("%s: read on", c.name)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", c.name, err)
		}
	}
	if _, err := NewReader("/nonexistent/igzip", strings.NewReader("")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// Close ends the program wherever it is.
func TestReaderClosed(t *testing.T) {
	_, packed := sample(t)
	for _, read := range []int64{0, 1, 1 << 20} {
		r, err := NewReader(program, bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, read); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("close after %d bytes took %v", read, took)
		}
		if p := r.(*process); p.cmd.ProcessState == nil {
			t.Errorf("process %d goes on", p.cmd.Process.Pid)
		}
	}
}

// A program that does not read all that there is has not failed.
func TestReaderLeavesRest(t *testing.T) {
	script := filepath.Join(t.TempDir(), "early")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho enough\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(script, bytes.NewReader(make([]byte, 5<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "enough\n" {
		t.Errorf("%q, %v", got, err)
	}
}
