package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

func TestLocks(t *testing.T) {
	type region struct{ off, size int64 }
	memory, file := region{0x140000000, 1 << 30}, region{}
	for _, c := range []struct {
		lock string
		l    region
		want bool
	}{
		{"1: FLOCK ADVISORY WRITE 7 fe:00:9 0 EOF", file, true},
		{"1: OFDLCK ADVISORY WRITE -1 fe:00:9 0 EOF", file, false},
		{"1: FLOCK ADVISORY WRITE 7 00:06:4 0 EOF", memory, false},
		{"1: OFDLCK ADVISORY WRITE -1 00:06:4 5368709120 6442450943", memory, true},
		{"1: OFDLCK ADVISORY WRITE -1 00:06:4 6442450943 6442450943", memory, true},
		{"1: OFDLCK ADVISORY WRITE -1 00:06:4 6442450944 7442450943", memory, false},
		{"1: OFDLCK ADVISORY WRITE -1 00:06:4 0 5368709119", memory, false},
	} {
		if got := locks(strings.Fields(c.lock), c.l.off, c.l.size); got != c.want {
			t.Errorf("%s: %v, want %v", c.lock, got, c.want)
		}
	}
}

// The process behind a lock of an open file is found.
func TestHolder(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 4096, Len: 8192}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, fmt.Sprintf(":%d 4096 12287", st.Ino)) {
			if pid := holder(strings.Fields(line)); pid != os.Getpid() {
				t.Errorf("held by process %d, want %d", pid, os.Getpid())
			}
			return
		}
	}
	t.Errorf("no lock of inode %d in\n%s", st.Ino, b)
}

// The owner of every kind of region that can be had here is found by its lock,
// and nobody where there is none.
func TestPoolOwner(t *testing.T) {
	name := fmt.Sprintf("ctl-%d", os.Getpid())
	for _, location := range []string{filepath.Join(t.TempDir(), "pool"), "memfd:" + name + ",size=64MiB"} {
		if got := poolOwner(location); got != nil {
			t.Errorf("%s, which is not there, is owned by %+v", location, got)
		}
		pool, err := daxmem.OpenOrCreate(t.Context(), location, daxmem.Options{MaxSize: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if got := poolOwner(location); got == nil || got.PID != os.Getpid() {
			t.Errorf("%s is owned by %+v, want process %d", location, got, os.Getpid())
		}
		if err := pool.Close(); err != nil {
			t.Fatal(err)
		}
		if got := poolOwner(location); got != nil {
			t.Errorf("%s, which was closed, is owned by %+v", location, got)
		}
	}
}
