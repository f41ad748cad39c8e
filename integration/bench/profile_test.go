package main

import (
	"bytes"
	"crypto/sha256"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/google/pprof/profile"
)

func TestWorkOf(t *testing.T) {
	const us = "github.com/daxfs/containerd-daxfs/"
	for _, c := range []struct {
		want  string
		stack []string // innermost first
	}{
		{sha256Work, []string{"crypto/internal/fips140/sha256.blockSHANI", "crypto/internal/fips140/sha256.(*Digest).Write", "io.(*teeReader).Read", "main.(*differ).Apply"}},
		{blake3Work, []string{"github.com/zeebo/blake3/internal/alg/hash/hash_avx2.HashF", us + "daxmem.(*Import).Put"}},
		{inflating, []string{"runtime.memmove", "github.com/klauspost/compress/zstd.(*blockDec).decodeBuf", "bufio.(*Reader).Read", us + "convert.FromTar"}},
		{copying, []string{"runtime.memmove", us + "daxmem.(*Writer).Write", us + "convert.FromTar"}},
		{copying, []string{"runtime.memmove", "bytes.(*Reader).Read", "archive/tar.(*regFileReader).Read", us + "convert.FromTar"}},
		{metadata, []string{"sort.insertionSort", us + "mkdaxfs.(*plan).names"}},
		{reading, []string{"runtime.memmove", "google.golang.org/grpc/mem.(*buffer).read", "io.Copy", "main.(*differ).Apply"}},
		{piping, []string{"syscall.Syscall", "internal/poll.(*FD).Write", "os.(*File).Write", "io.copyBuffer", us + "internal/gunzip.(*process).start.func1"}},
		{reading, []string{"google.golang.org/grpc.(*clientStream).RecvMsg", "io.copyBuffer", us + "internal/gunzip.(*process).start.func1"}},
		{runtimes, []string{"runtime.scanobject", "runtime.gcDrain", "runtime.gcBgMarkWorker"}},
		{other, []string{"encoding/json.Marshal", "main.main"}},
		{other, nil},
	} {
		if got := workOf(c.stack); got != c.want {
			t.Errorf("%q: got %q, want %q", c.stack, got, c.want)
		}
	}
}

// A real profile of a program that only hashes says so.
func TestSharesOfRealProfile(t *testing.T) {
	var b bytes.Buffer
	if err := pprof.StartCPUProfile(&b); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 1<<20)
	for start := time.Now(); time.Since(start) < 300*time.Millisecond; {
		sha256.Sum256(data)
	}
	pprof.StopCPUProfile()
	p, err := profile.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	shares := sharesOf(p)
	var all time.Duration
	for _, d := range shares {
		all += d
	}
	if all == 0 || float64(shares[sha256Work]) < 0.7*float64(all) {
		t.Errorf("shares: %v", shares)
	}
}
