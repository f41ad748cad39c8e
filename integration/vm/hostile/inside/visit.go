package inside

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is looked at in one image: damaged ones claim to be large.
const (
	namesMax    = 2000
	namesAll    = 40 // so many get everything, of the others one in eight
	depthMax    = 70
	bytesMax    = 8 << 20   // read and mapped together
	readMax     = 1 << 20   // bytes from either end of a file
	mapMax      = 256 << 10 // bytes mapped at either end of a file
	programsMax = 3
	handlesMax  = 40
)

// visit does to a tree what programs do. Errors are counted: most of them are
// as good as success.
type visit struct {
	*Report
	*rand.Rand
	names    int
	programs int
	bytes    int64
	sum      byte   // of what was touched
	image    string // for messages
	buf      []byte
	// changing: the image changes meanwhile, so that nothing can be expected of
	// what was read.
	changing bool
	// exec: run programs.
	exec bool
}

func newVisit(r *Report, image string, seed uint64) *visit {
	return &visit{Report: r, Rand: rand.New(rand.NewPCG(seed, 1)), image: image, buf: make([]byte, 64<<10)}
}

// tree visits everything at and below root.
func (v *visit) tree(root string) {
	v.names = 0
	v.programs = 0
	v.bytes = 0
	var st unix.Statfs_t
	if v.call("statfs", unix.Statfs(root, &st)) && st.Namelen != 255 {
		v.broken("%s: statfs says names have up to %d bytes", v.image, st.Namelen)
	}
	v.any(root, 0)
}

func (v *visit) any(path string, depth int) {
	var st unix.Stat_t
	if !v.call("lstat", unix.Lstat(path, &st)) {
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && v.names > namesAll && v.IntN(8) != 0 {
		return
	}
	v.attributes(path)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		v.directory(path, depth)
	case unix.S_IFREG:
		v.file(path, &st)
	case unix.S_IFLNK:
		n, err := unix.Readlink(path, v.buf)
		if v.call("readlink", err) && !v.changing && int64(n) != st.Size {
			v.broken("%s: %q: link target of %d bytes, lstat says %d", v.image, path, n, st.Size)
		}
		v.call("stat", unix.Stat(path, &st))
	default:
		// Devices are not opened (nodev), nor are FIFOs.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if v.call("open O_PATH", err) {
			unix.Close(fd)
		}
	}
}

func (v *visit) attributes(path string) {
	n, err := unix.Llistxattr(path, nil)
	if !v.call("llistxattr size", err) {
		return
	}
	list := make([]byte, n)
	if n > 0 {
		n, err = unix.Llistxattr(path, list)
		if !v.call("llistxattr", err) {
			return
		}
		list = list[:n]
	}
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	others := []string{"system.posix_acl_access", "system.posix_acl_default", "security.capability", "user.there-is-none", "trusted.t"}
	for _, name := range append(names, others[v.IntN(len(others))]) {
		if name == "" {
			continue
		}
		if n, err = unix.Lgetxattr(path, name, nil); !v.call("lgetxattr size", err) {
			continue
		}
		_, err = unix.Lgetxattr(path, name, make([]byte, n+1))
		v.call("lgetxattr", err)
	}
}

func (v *visit) directory(path string, depth int) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if !v.call("open directory", err) {
		return
	}
	names := v.list(fd)
	if len(names) > 0 {
		// Somewhere in the middle, and behind the end.
		for _, pos := range []int64{int64(v.IntN(len(names) + 2)), 1 << 40} {
			_, err := unix.Seek(fd, pos, 0)
			if v.call("lseek directory", err) {
				_, err = unix.Getdents(fd, v.buf)
				v.call("getdents", err)
			}
		}
	}
	unix.Close(fd)
	var st unix.Stat_t
	v.call("lstat of no name", unix.Lstat(filepath.Join(path, "no such name"), &st))
	v.call("lstat of a long name", unix.Lstat(filepath.Join(path, strings.Repeat("z", 255)), &st))
	for _, name := range names {
		if v.names++; v.names > namesMax || depth > depthMax {
			return
		}
		v.any(path+"/"+name, depth+1)
	}
}

// list reads the names of a directory, "." and ".." not.
func (v *visit) list(fd int) []string {
	var names []string
	for len(names) < namesMax {
		n, err := unix.Getdents(fd, v.buf)
		if !v.call("getdents", err) || n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(v.buf[:n], -1, names)
	}
	return names
}

func (v *visit) file(path string, st *unix.Stat_t) {
	v.access(path)
	// Never waits, whatever the file is by now.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if !v.call("open", err) {
		return
	}
	defer unix.Close(fd)
	// What is open now is what counts.
	if !v.call("fstat", unix.Fstat(fd, st)) || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	if v.bytes > bytesMax {
		return
	}
	v.bytes += min(2*readMax, st.Size)
	v.read(path, fd, 0, st.Size)
	if st.Size > readMax {
		v.read(path, fd, st.Size-readMax+int64(v.IntN(4096)), st.Size)
	}
	if st.Size > 0 {
		v.mapped(path, fd, 0, st.Size)
		if st.Size > mapMax {
			v.mapped(path, fd, (st.Size-mapMax)&^4095, st.Size)
		}
	}
	if v.exec && st.Mode&0o111 != 0 && v.programs < programsMax {
		v.programs++
		v.run(path)
	}
}

// access asks for permissions as somebody whom ACLs name.
func (v *visit) access(path string) {
	unix.Setfsuid(1000)
	unix.Setfsgid(1000)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	unix.Setfsuid(0)
	unix.Setfsgid(0)
	if v.call("open as user", err) {
		unix.Close(fd)
	}
}

// read reads from pos on, up to readMax bytes.
func (v *visit) read(path string, fd int, pos, size int64) {
	end := min(size, pos+readMax)
	for pos < end {
		n, err := unix.Pread(fd, v.buf[:1+v.IntN(len(v.buf))], pos)
		if !v.call("pread", err) {
			return
		}
		if n == 0 {
			v.broken("%s: %q: end of file at %d, fstat says %d", v.image, path, pos, size)
			return
		}
		pos += int64(n)
	}
	n, err := unix.Pread(fd, v.buf, size)
	if v.call("pread behind the end", err) && n != 0 {
		v.broken("%s: %q: %d bytes behind the end at %d", v.image, path, n, size)
	}
}

// mapped maps up to mapMax bytes from pos on and touches every page, both ways.
func (v *visit) mapped(path string, fd int, pos, size int64) {
	n := min(size-pos, mapMax)
	pages := (n + 4095) / 4096
	// With a page behind the file's last one, which must give SIGBUS.
	b, err := unix.Mmap(fd, pos, int(pages+1)*4096, unix.PROT_READ, unix.MAP_SHARED)
	if v.call("mmap shared", err) {
		for i := range pages {
			v.call("touch", v.touch(b, i*4096))
		}
		if err := v.touch(b, pages*4096); err == nil && pos+pages*4096 >= size {
			v.broken("%s: %q: a page behind its %d bytes can be read", v.image, path, size)
		}
		v.call("mprotect shared", unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE))
		unix.Munmap(b)
	}
	_, err = unix.Mmap(fd, pos, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if v.call("mmap shared writable", err) {
		v.broken("%s: %q: a shared mapping is writable", v.image, path)
	}
	b, err = unix.Mmap(fd, pos, int(pages)*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if v.call("mmap private", err) {
		for i := range pages {
			if v.IntN(2) == 0 {
				v.call("touch", v.touch(b, i*4096))
			}
			v.call("write to private", v.poke(b, i*4096))
		}
		unix.Munmap(b)
	}
}

// touch reads a byte of a mapping; an error instead of SIGBUS.
func (v *visit) touch(b []byte, at int64) (err error) {
	defer fault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	v.sum += b[at]
	return nil
}

// poke writes a byte.
func (v *visit) poke(b []byte, at int64) (err error) {
	defer fault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	b[at] = 1
	return nil
}

// fault turns the panic of a fault into an error.
func fault(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%v", r)
		if _, ok := r.(interface{ Addr() uintptr }); ok {
			*err = fmt.Errorf("SIGBUS")
		}
	}
}

// run executes a file. A damaged program may do anything, so it is nobody's and
// has no time.
func (v *visit) run(path string) {
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: 1000, Gid: 100},
		Pdeathsig:  syscall.SIGKILL,
	}
	if !v.call("execve", cmd.Start()) {
		return
	}
	kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	kill.Stop()
	if cmd.ProcessState.Exited() {
		err = nil
	}
	v.call("program", err)
}

// handles opens inodes by their numbers, as an NFS server does for its clients:
// nobody has walked to them.
func (v *visit) handles(root string) {
	mount, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !v.call("open directory", err) {
		return
	}
	defer unix.Close(mount)
	// FILEID_INO32_GEN: number and generation; FILEID_INO32_GEN_PARENT names a
	// parent too (enum fid_type of the kernel).
	for range handlesMax {
		ino, parent := uint32(v.IntN(80)), uint32(v.IntN(80))
		handle, kind := binary.NativeEndian.AppendUint32(nil, ino), int32(1)
		handle = binary.NativeEndian.AppendUint32(handle, 0)
		if v.IntN(4) == 0 {
			kind = 2
			handle = binary.NativeEndian.AppendUint32(handle, parent)
			handle = binary.NativeEndian.AppendUint32(handle, 0)
		}
		fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(kind, handle), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		if !v.call("open_by_handle_at", err) {
			continue
		}
		var st unix.Stat_t
		if v.call("fstat", unix.Fstat(fd, &st)) {
			if st.Ino != uint64(ino) {
				v.broken("%s: handle of inode %d opens inode %d", v.image, ino, st.Ino)
			}
			// The way up.
			v.call("lookup of ..", unix.Fstatat(fd, "..", &st, 0))
			_, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
			v.call("readlink of /proc/self/fd", err)
		}
		unix.Close(fd)
	}
}

// ownHandles makes handles of the names of root and opens them.
func (v *visit) ownHandles(root string) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !v.call("open directory", err) {
		return
	}
	defer unix.Close(fd)
	names := v.list(fd)
	for _, name := range names[:min(len(names), handlesMax)] {
		handle, _, err := unix.NameToHandleAt(fd, name, 0)
		if !v.call("name_to_handle_at", err) {
			continue
		}
		opened, err := unix.OpenByHandleAt(fd, handle, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		if v.call("open_by_handle_at", err) {
			unix.Close(opened)
		}
	}
}
