package load

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// container is a mounted snapshot.
type container struct {
	key    string
	img    *Image
	root   string
	mounts []mount.Mount

	mu    sync.Mutex // held while it is read, or unmounted
	ended bool
}

// verify compares all files, read anew, and with program what the image's own
// program finds in them.
func (l *Load) verify(c *container, program bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	n := Read{Files: len(c.img.Files)}
	for path, want := range c.img.Files {
		got, size, err := sum(filepath.Join(c.root, path))
		if err != nil {
			return fmt.Errorf("%s of %s: %w: %w", path, c.img.Name, err, ErrWrong)
		}
		if got != want {
			return fmt.Errorf("%s of %s in %s: SHA-256 %s, want %s: %w", path, c.img.Name, c.root, got, want, ErrWrong)
		}
		n.Bytes += size
	}
	for _, path := range c.img.Gone {
		_, err := os.Lstat(filepath.Join(c.root, path))
		if err == nil {
			return fmt.Errorf("%s of %s is there, and a layer removes it: %w", path, c.img.Name, ErrWrong)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if program {
		n.Runs++
		if err := c.runProgram(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read.Files, l.read.Bytes, l.read.Runs = l.read.Files+n.Files, l.read.Bytes+n.Bytes, l.read.Runs+n.Runs
	return nil
}

// sum reads a file past the kernel's page cache, where it has one: what counts
// is what the pool holds now.
func sum(path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return "", 0, err
	}
	h := sha256.New()
	size, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), size, err
}

// runProgram runs the image's program in the container; it hashes the files too.
func (c *container) runProgram() error {
	paths := sorted(maps.Keys(c.img.Files))
	var want strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&want, "%s  %s\n", c.img.Files[p], p)
	}
	cmd := exec.Command("/"+Program, append([]string{"sum"}, paths...)...)
	cmd.Args[0], cmd.Dir = "testprog", "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("program of %s in %s: %w: %s: %w", c.img.Name, c.root, err, out, ErrWrong)
	}
	if string(out) != want.String() {
		return fmt.Errorf("program of %s in %s says\n%s\nwant\n%s: %w", c.img.Name, c.root, out, want.String(), ErrWrong)
	}
	return nil
}

func (c *container) unmount() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	if err := mount.UnmountMounts(c.mounts, c.root, 0); err != nil {
		return &os.PathError{Op: "unmount", Path: c.root, Err: err}
	}
	c.ended = true
	return os.Remove(c.root)
}

// hold keeps a container for later, if there are not many yet.
func (l *Load) hold(c *container) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) >= maxHeld {
		return false
	}
	l.held = append(l.held, c)
	return true
}

// takeHeld takes one of the held containers away, sometimes.
func (l *Load) takeHeld(rnd *rand.Rand) *container {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) == 0 || rnd.IntN(8) > len(l.held) {
		return nil
	}
	return l.take(rnd.IntN(len(l.held)))
}

func (l *Load) anyHeld() *container {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.held) == 0 {
		return nil
	}
	return l.take(0)
}

func (l *Load) take(i int) *container {
	c := l.held[i]
	l.held = append(l.held[:i], l.held[i+1:]...)
	return c
}

// Verify compares all files of all containers that are held.
func (l *Load) Verify() (containers int, err error) {
	l.mu.Lock()
	held := append([]*container(nil), l.held...)
	l.mu.Unlock()
	for _, c := range held {
		if err := l.verify(c, false); err != nil {
			return 0, err
		}
	}
	return len(held), nil
}
