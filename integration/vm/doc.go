// Package vm boots real Linux kernels in QEMU for tests: one or several guests
// at once, each with a kernel of its choice, over one memory file that all of
// them see as physical memory.
//
// # Kernels
//
// Kernels fetches Debian's kernels into .cache/vm, each with its headers and a
// compiler in a small chroot of its own, so that the machine's configuration
// stays as it is. Kernel.Module builds our module there.
//
// # Guests
//
// A guest is emulated (TCG; absolute times mean nothing, ratios do) and has two
// CPUs: with one possible CPU QEMU emits code that is not atomic towards other
// guests. Its userland is the machine's own root file system, read-only over 9p
// below an overlay on tmpfs, so programs and test binaries run inside at the
// path they have outside, and what the guest writes is gone with it. Files that
// the machine changes while a guest runs may look old in it, except below
// Machine.Shared.
//
// A static program (package agent) is the guest's init and runs commands for
// Guest.Run. It sets up /proc, /sys with cgroup2, debugfs and tracefs, /dev,
// /dev/shm, /run and the loopback interface; there is no network besides.
//
// # Nothing is left over
//
// A guest's console, its initrd and the connection to it are anonymous
// descriptors, and QEMU dies with the process that booted it, however that one
// ends.
package vm
