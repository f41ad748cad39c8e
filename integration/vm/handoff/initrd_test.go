package handoff

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/images"
	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/vm"
)

// makeInitrd lets initramfs-tools make an initrd in a Debian in which our module
// and script/initramfs-tools are installed. $1 is that Debian, which stays as it
// is, $2 and $3 the kernel's chroot and release, $4 the module, $5 the scripts,
// $6 an empty directory, $7 the initrd to write. Only what hooks ask for is in
// it, and nothing is compressed: an emulated CPU would be long about the rest.
const makeInitrd = `
set -eu
mount -t tmpfs tmpfs "$6"
cd "$6"
mkdir upper work root mupper mwork
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root
mkdir -p "root/lib/modules/$3"
mount -t overlay -o "lowerdir=$2/lib/modules/$3,upperdir=mupper,workdir=mwork" overlay "root/lib/modules/$3"
mount -t proc proc root/proc
for config in "$2/boot/config-$3" "$2/lib/modules/$3/config"; do
	[ ! -e "$config" ] || cp "$config" "root/boot/config-$3"
done
mkdir -p "root/lib/modules/$3/updates/dkms"
cp "$4" "root/lib/modules/$3/updates/dkms/"
cp -r "$5/." root/etc/initramfs-tools/
printf 'MODULES=list\nCOMPRESS=xz\nCOMPRESSLEVEL=0\n' >root/etc/initramfs-tools/conf.d/lab
chroot root depmod "$3"
chroot root mkinitramfs -o /initrd.xz "$3"
chroot root xz -dc /initrd.xz >"$7"
`

// initrd returns an initrd for a kernel.
func initrd(t *testing.T, k vm.Kernel) []byte {
	t.Helper()
	ko, err := k.Module(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "initrd")
	run(t, "unshare", "--mount", "--propagation", "slave", "sh", "-c", makeInitrd, "sh",
		debian(t), k.Root, k.Release, ko, filepath.Join(lab.RepoRoot(), "script/initramfs-tools"), t.TempDir(), out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// debian returns a Debian with initramfs-tools, which is made once.
func debian(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(lab.CacheDir(), "initramfs-tools-1")
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		t.Fatal(err)
	}
	if err := images.Bootstrap(t.Context(), tmp, "initramfs-tools-core", "klibc-utils", "kmod", "udev", "xz-utils"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// run runs a program that has to succeed and returns what it wrote to standard
// output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		_ = errors.As(err, &exit)
		t.Fatalf("%q: %v\n%s%s", args, err, out, exit.Stderr)
	}
	return string(out)
}
