package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// overlayOptions are options for every overlay that a container runs on. As
// containerd's own snapshotter does, the inode index is switched off, since
// two overlays may share a lower directory.
var overlayOptions = sync.OnceValue(func() []string {
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err != nil {
		return nil
	}
	return []string{"index=off"}
})

// fillUpper gives a new upper directory what overlayfs takes from it for the
// root: without it every container's root would have the mode and time of an
// empty directory. Owners are the host's.
func (s *Snapshotter) fillUpper(sn *snapshot) error {
	uids, err := parseIDMap(sn.info.Labels[snapshots.LabelSnapshotUIDMapping])
	if err != nil {
		return err
	}
	gids, err := parseIDMap(sn.info.Labels[snapshots.LabelSnapshotGIDMapping])
	if err != nil {
		return err
	}
	upper := s.upper(sn.id)
	st := unix.Stat_t{Mode: 0o755}
	lower := ""
	if len(sn.chain) > 0 && !isUnpack(sn.info) {
		lower = s.images.target(sn.chain.key())
		if err := unix.Stat(lower, &st); err != nil {
			return fmt.Errorf("read root of image: %w", err)
		}
	}
	uid, err := uids.host(st.Uid)
	if err != nil {
		return err
	}
	gid, err := gids.host(st.Gid)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := os.Lchown(upper, int(uid), int(gid)); err != nil {
			return err
		}
	}
	if lower == "" {
		return nil
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return fmt.Errorf("set mode of %s: %w", upper, err)
	}
	if err := copyXattrs(lower, upper); err != nil {
		return err
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, upper, times, 0); err != nil {
		return fmt.Errorf("set time of %s: %w", upper, err)
	}
	return nil
}

func copyXattrs(from, to string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(from, buf)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return fmt.Errorf("list xattrs of image root: %w", err)
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		m, err := unix.Getxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("read xattr %q of image root: %w", name, err)
		}
		if err := unix.Setxattr(to, name, value[:m], 0); err != nil {
			return fmt.Errorf("set xattr %q of %s: %w", name, to, err)
		}
	}
	return nil
}
