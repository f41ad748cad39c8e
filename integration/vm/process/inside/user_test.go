package inside

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs f with the ids of an ordinary user and no capabilities. It does
// so on a thread of its own, which is thrown away afterwards; f must not start
// goroutines.
func asUser(t *testing.T, uid, gid int, groups []int, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		done <- func() error {
			// Package syscall's own change all threads. Go's ints are C's here:
			// gid_t has 32 bits.
			ids := make([]uint32, len(groups)+1)
			for i, g := range groups {
				ids[i] = uint32(g)
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&ids[0])), 0); e != 0 {
				return e
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
				return e
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			f()
			return nil
		}()
	}()
	must(t, <-done)
}
