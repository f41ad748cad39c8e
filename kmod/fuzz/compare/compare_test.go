// Package compare runs the parsing core of the kernel module in user space,
// under sanitizers, and compares what it finds in images with the Go reader.
package compare

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/vm/hostile/mutate"
	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/internal/testutil"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

// core is the running program list of kmod/fuzz.
type core struct {
	t      *testing.T
	in     io.WriteCloser
	out    *bufio.Reader
	stderr bytes.Buffer
	cmd    *exec.Cmd
}

func startCore(t *testing.T, args ...string) *core {
	t.Helper()
	testutil.Tool(t, "gcc")
	// go test's cache knows what the test has read, not what gcc has.
	for _, pattern := range []string{"../*.[ch]", "../Makefile", "../../core.[ch]", "../../daxfs_format.h"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("sources %s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			if _, err := os.ReadFile(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command(testutil.Tool(t, "make"), "-C", "..", "CC=gcc", "OUT="+dir, "list").CombinedOutput(); err != nil {
		t.Fatalf("compile the core: %v\n%s", err, out)
	}
	c := &core{t: t, cmd: exec.Command(filepath.Join(dir, "list"), args...)}
	c.cmd.Stderr = &c.stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.in.Close()
		if err := c.cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("the core: %v\n%s", err, &c.stderr)
		}
	})
	return c
}

// verdict is what the core says of an image: 0 or a negative errno.
type verdict struct {
	open, check int
	errors      int // of the walk
	listing     []string
}

func (v verdict) accepted() bool { return v.open == 0 && v.check == 0 }

// try gives the core an image. What describes it is for the message if the core
// dies of it.
func (c *core) try(image []byte, describe func() string) verdict {
	c.t.Helper()
	head := binary.NativeEndian.AppendUint64(nil, uint64(len(image)))
	_, err := c.in.Write(append(head, image...))
	var v verdict
	var line string
	if err == nil {
		if line, err = c.out.ReadString('\n'); err == nil {
			_, err = fmt.Sscanf(line, "open %d check %d errors %d", &v.open, &v.check, &v.errors)
		}
	}
	for err == nil {
		if line, err = c.out.ReadString('\n'); line == ".\n" {
			break
		}
		v.listing = append(v.listing, strings.TrimSuffix(line, "\n"))
	}
	if err != nil {
		c.in.Close()
		waitErr := c.cmd.Wait()
		c.t.Fatalf("the core: %v, %v: %s\n%s", err, waitErr, describe(), &c.stderr)
	}
	slices.Sort(v.listing)
	return v
}

// goVerdict is the Go reader's listing of an image that it accepts as one to
// mount, in the words of kmod/fuzz/walk.c.
func goVerdict(t *testing.T, image []byte) (listing []string, err error) {
	t.Helper()
	img, err := mkdaxfs.Open(bytes.NewReader(image), int64(len(image)))
	if err == nil {
		_, err = mkdaxfs.Check(img, 0)
	}
	if err == nil && img.IsLayer() {
		err = fmt.Errorf("a layer index: %w", disk.ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	fsys := img.FS()
	err = fs.WalkDir(fsys, ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := fsys.Lstat(path)
		if err != nil {
			return err
		}
		line, err := describe(img, path, fi.Sys().(*disk.Inode))
		listing = append(listing, line)
		return err
	})
	if err != nil {
		t.Fatalf("walk an image that passes the checker: %v", err)
	}
	slices.Sort(listing)
	return listing, nil
}

// describe is a line of the listing: path, inode, content, attributes.
func describe(img *mkdaxfs.Image, path string, in *disk.Inode) (string, error) {
	if path = "/" + path; path == "/." {
		path = ""
	}
	content := "-"
	switch in.Mode & disk.TypeMask {
	case disk.TypeRegular:
		r, err := img.Data(in)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return "", err
		}
		content = fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	case disk.TypeSymlink:
		target, err := img.Link(in)
		if err != nil {
			return "", err
		}
		content = hex.EncodeToString([]byte(target))
	}
	rdev := "0"
	if in.Rdev != 0 {
		rdev = fmt.Sprintf("%#x", in.Rdev)
	}
	line := fmt.Sprintf("/%x %d %o %d %d %d %d %s %d.%09d %s", path, in.Ino, in.Mode, in.UID, in.GID, in.Size, in.Nlink,
		rdev, in.Mtime, in.MtimeNsec, content)
	xs, err := img.Xattrs(in)
	for _, x := range xs {
		index, suffix, _ := disk.SplitXattr(x.Name)
		line += fmt.Sprintf(" %d:%x=%x", index, suffix, x.Value)
	}
	return line, err
}

// without returns the lines of a that b does not have.
func without(a, b []string) string {
	var out []string
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// compare fails the test where the core refuses what the checker accepts, or
// finds something else in it. It reports whether the checker accepts.
func compare(t *testing.T, c *core, image []byte, describe func() string) (goAccepts, coreAccepts bool) {
	t.Helper()
	v := c.try(image, describe)
	listing, err := goVerdict(t, image)
	if err != nil {
		return false, v.accepted()
	}
	if !v.accepted() {
		t.Errorf("the core refuses what the checker accepts: open %d, check %d: %s", v.open, v.check, describe())
	} else if !slices.Equal(v.listing, listing) {
		t.Errorf("only the core finds\n%s\nonly the Go reader\n%s\n%s", without(v.listing, listing), without(listing, v.listing), describe())
	}
	return true, v.accepted()
}

// TestSound: both readers find the same in every kind of image.
func TestSound(t *testing.T) {
	images, err := mutate.Images()
	if err != nil {
		t.Fatal(err)
	}
	c := startCore(t)
	for _, i := range images {
		if accepted, _ := compare(t, c, i.Bytes, func() string { return i.Name }); !accepted {
			t.Errorf("the checker refuses image %s", i.Name)
		}
	}
}

// TestMutated: the core reads nothing outside a damaged image, also while it
// changes, and accepts at least what the checker accepts.
func TestMutated(t *testing.T) {
	count := uint64(3000)
	if testing.Short() {
		count = 500
	}
	images, err := mutate.Images()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mutate.New(images)
	if err != nil {
		t.Fatal(err)
	}
	c := startCore(t, "-changing")
	var checker, core int
	for n := range count {
		i := m.Mutate(3, n)
		goAccepts, coreAccepts := compare(t, c, i.Bytes, func() string {
			return fmt.Sprintf("image %d, from %s: %s", n, i.From, strings.Join(i.Changes, "; "))
		})
		if goAccepts {
			checker++
		}
		if coreAccepts {
			core++
		}
	}
	t.Logf("of %d images the checker accepts %d, the core %d", count, checker, core)
	if checker == 0 || core < checker || core == int(count) {
		t.Errorf("of %d images the checker accepts %d, the core %d: mutations have lost their bite", count, checker, core)
	}
}

// TestCostly: no image takes time out of proportion to its size.
func TestCostly(t *testing.T) {
	const size = 256 << 10
	c := startCore(t)
	for _, i := range mutate.Costly(size) {
		start := time.Now()
		v := c.try(i.Bytes, func() string { return i.Name })
		took := time.Since(start)
		t.Logf("%s: open %d, check %d, %v", i.Name, v.open, v.check, took)
		if v.open != 0 {
			t.Errorf("%s: open %d, want 0", i.Name, v.open)
		}
		// A sound image of this size takes some tens of milliseconds.
		if took > 5*time.Second {
			t.Errorf("%s: took %v for %d bytes", i.Name, took, size)
		}
	}
}
