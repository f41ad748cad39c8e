package inside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// handleOf returns the handle that an NFS server would give out.
func handleOf(t *testing.T, path string) unix.FileHandle {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Fatalf("name_to_handle_at %s: %v", path, err)
	}
	return h
}

// openHandle opens by a handle of the file system that is mounted at root.
func openHandle(t *testing.T, root string, h unix.FileHandle, flags int) (*os.File, error) {
	t.Helper()
	dir, err := os.Open(root)
	must(t, err)
	defer dir.Close()
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), h, flags)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "handle")
	t.Cleanup(func() { f.Close() })
	return f, nil
}

// TestHandles: files are found by their handles, also when the kernel has
// forgotten them, and in a later mount of the image.
func TestHandles(t *testing.T) {
	onViews(t, "native v8 pool", func(t *testing.T, m *mounted) {
		files := []string{"types/file", "links/a", "names/a\xffb", "data/8193", "many/" + ManyName(77)}
		handles := map[string]unix.FileHandle{}
		for _, rel := range append(files, ".", "many", "symlinks/dangling") {
			flags := 0
			h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.path(rel), flags)
			if err != nil {
				t.Fatalf("name_to_handle_at %s: %v", rel, err)
			}
			handles[rel] = h
		}
		if a, b := handles["links/a"], handleOf(t, m.path("links/sub/c")); a.Type() != b.Type() || !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("two names of a file have handles %x and %x", a.Bytes(), b.Bytes())
		}
		check := func(when, root string) {
			for _, rel := range files {
				f, err := openHandle(t, root, handles[rel], unix.O_RDONLY)
				if err != nil {
					t.Errorf("%s: open %q by handle: %v", when, rel, err)
					continue
				}
				got, err := io.ReadAll(f)
				must(t, err)
				f.Close()
				want, err := os.ReadFile(m.path(rel))
				must(t, err)
				if !bytes.Equal(got, want) {
					t.Errorf("%s: %q by handle has %d bytes, want %d", when, rel, len(got), len(want))
				}
			}
			// A directory found so is connected to the root.
			d, err := openHandle(t, root, handles["many"], unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				t.Errorf("%s: open many by handle: %v", when, err)
				return
			}
			var st, want unix.Stat_t
			must(t, unix.Fstatat(int(d.Fd()), "../types/file", &st, 0))
			must(t, unix.Stat(root+"/types/file", &want))
			if st.Ino != want.Ino {
				t.Errorf("%s: ../types/file from a directory found by handle is inode %d, want %d", when, st.Ino, want.Ino)
			}
			d.Close()
			l, err := openHandle(t, root, handles["symlinks/dangling"], unix.O_PATH)
			if err != nil {
				t.Errorf("%s: open a symlink by handle: %v", when, err)
				return
			}
			b := make([]byte, 100)
			n, err := unix.Readlinkat(int(l.Fd()), "", b)
			if err != nil || string(b[:n]) != "/nowhere/at/all" {
				t.Errorf("%s: symlink by handle leads to %q, %v", when, b[:n], err)
			}
			l.Close()
		}
		check("at once", m.root)
		dropCaches(t)
		check("after drop_caches", m.root)
		if config.FS == "daxfs" {
			// The first mount is gone in the meantime.
			other := m.mount(t)
			unmount(t, m.root)
			m.root, m.base = other.root, other.base
			dropCaches(t)
			check("in another mount", other.root)
		}
	})
}

// TestStaleHandles: handles that never were given out are no way into the
// kernel. EROFS opens what it finds there.
func TestStaleHandles(t *testing.T) {
	daxfsOnly(t)
	onViews(t, "native v8", func(t *testing.T, m *mounted) {
		good := handleOf(t, m.path("types/file"))
		try := func(what string, typ int32, b []byte) {
			f, err := openHandle(t, m.root, unix.NewFileHandle(typ, b), unix.O_RDONLY)
			if !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s: %v, %v, want %v", what, f, err, unix.ESTALE)
			}
		}
		for _, ino := range []uint32{0, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			b := bytes.Clone(good.Bytes())
			binary.LittleEndian.PutUint32(b, ino)
			try("number out of range", good.Type(), b)
		}
		try("too short", good.Type(), good.Bytes()[:4])
		try("unknown type", 0x33, good.Bytes())
		// With a parent that is none.
		b := binary.LittleEndian.AppendUint32(bytes.Clone(good.Bytes()), 1<<31)
		if f, err := openHandle(t, m.root, unix.NewFileHandle(2, append(b, 0, 0, 0, 0)), unix.O_RDONLY); err == nil {
			f.Close() // the child alone suffices
		}
	})
}

// TestHandleNeedsCapability: a handle is a way round the permissions of
// directories.
func TestHandleNeedsCapability(t *testing.T) {
	onViews(t, "native", func(t *testing.T, m *mounted) {
		h := handleOf(t, m.path("private/readable"))
		dir := m.open(t, ".")
		var err error
		asUser(t, 1000, 1000, nil, func() { _, err = unix.OpenByHandleAt(int(dir.Fd()), h, unix.O_RDONLY) })
		if err != unix.EPERM {
			t.Errorf("open by handle without CAP_DAC_READ_SEARCH: %v, want %v", err, unix.EPERM)
		}
	})
}
