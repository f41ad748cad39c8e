package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// directories looks at where snapshots and pool are kept.
func (d *doctor) directories() {
	root := existing(d.cfg.Root)
	where := root
	if root != d.cfg.Root {
		where += " (" + d.cfg.Root + " is made at the first start)"
	}
	if err := overlayUpper(root); err != nil {
		d.add("root_dir", fail, where+": cannot be the upper directory of an overlay: "+err.Error(),
			"put root on ext4, xfs (ftype=1), btrfs or tmpfs, not on an overlay or a network file system")
	} else {
		d.add("root_dir", ok, where+": containers can write there", "")
	}
	d.space("root_space", root)
	l, err := daxmem.ParseLocation(d.cfg.Pool.Path)
	if err != nil || l.Path == "" || filepath.Dir(l.Path) == "/dev" {
		return // memory, not a part of a file system
	}
	if pool := existing(filepath.Dir(l.Path)); pool != root {
		d.space("pool_space", pool)
	}
}

// overlayUpper tries whether overlayfs takes directories of dir.
func overlayUpper(dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, ".doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := unix.Setxattr(tmp, "trusted.daxfs.probe", []byte("y"), 0); err != nil {
		return fmt.Errorf("set a trusted.* xattr: %w", err)
	}
	return overlayutils.Supported(tmp)
}

func (d *doctor) space(name, dir string) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		d.add(name, fail, dir+": "+err.Error(), "")
		return
	}
	free, all := int64(fs.Bavail)*fs.Bsize, int64(fs.Blocks)*fs.Bsize
	detail := fmt.Sprintf("%s: %s of %s free", dir, size(free), size(all))
	v := ok
	if free < 1<<30 || free < all/20 {
		v = warn
	}
	d.add(name, v, detail, "make room, or give the pool another place (pool.path)")
}

// pool looks into the pool.
func (d *doctor) pool() {
	path := d.cfg.Pool.Path
	if d.fresh() {
		d.add("pool", ok, path+" is made at the daemon's first start", "")
		return
	}
	pool, err := openPool(d.ctx, d.cfg)
	if err != nil {
		remedy := "docs/operating.md, \"Recovery\""
		switch {
		case errors.Is(err, daxmem.ErrNotPool):
			remedy = "pool.path names something else: correct it, or, if nobody needs what is there, daxfsctl pool create --force"
		case errors.Is(err, os.ErrNotExist):
			remedy = "pool.path names a device that is not there: correct it, or load its driver"
		case errors.Is(err, daxmem.ErrNoMemory):
			remedy = "pool.path names memory that is not there: correct it (the lines region_… have what is), or load its driver"
		}
		d.add("pool", fail, oneLine(err), remedy)
		return
	}
	defer shut(pool)
	st, err := pool.Stat()
	if err != nil {
		d.add("pool", fail, err.Error(), "")
		return
	}
	most, left := room(d.cfg, &st)
	detail := fmt.Sprintf("%s: %s, %s, %s of %s available", path, plural(st.LayerCount, "layer"), plural(st.ImageCount, "image"), size(left), size(most))
	d.volatile = !pool.Region().Persistent()
	switch {
	case st.QuarantinedCount == 0 && pool.SelfContained() == d.cfg.Pool.ShareExtents:
		d.add("pool", fail, fmt.Sprintf("%s was made with share_extents = %v, the configuration has %v: the daemon does not start", path, !pool.SelfContained(), d.cfg.Pool.ShareExtents),
			"correct pool.share_extents, or make a new pool")
	case st.QuarantinedCount > 0:
		d.add("pool", warn, fmt.Sprintf("%s, %s in quarantine", detail, plural(st.QuarantinedCount, "record")),
			"daxfsctl pool check names them and the images concerned: remove these and pull them again")
	case left < most/20:
		d.add("pool", warn, detail, "remove images, or raise pool.max_size")
	case d.volatile && d.cfg.Pool.Persist:
		d.add("pool", ok, detail+"; in memory, with copies in "+d.cfg.SpillPath(), "")
	case d.volatile && d.cfg.Containerd != "":
		d.add("pool", ok, detail+"; in memory: after a reboot, layers are unpacked again from what containerd keeps of them", "")
	case d.volatile:
		kind, _ := daxmem.InfoOf(st.Kind)
		d.add("pool", warn, detail+"; it is in memory only (after a reboot: "+kind.Reboot+")",
			"set containerd or pool.persist = true; else images must be removed and pulled again")
	default:
		d.add("pool", ok, detail, "")
	}
	d.layers()
}

// fresh reports whether there is no pool yet where the daemon will make one.
func (d *doctor) fresh() bool {
	l, err := daxmem.ParseLocation(d.cfg.Pool.Path)
	if err != nil {
		return false
	}
	region, err := daxmem.OpenRegionReadOnly(d.cfg.Pool.Path)
	if isMissing(err) {
		return l.Made()
	}
	if err != nil {
		return false
	}
	defer shut(region)
	blank, err := daxmem.Blank(region)
	return err == nil && blank
}

// isMissing reports that a region could not be opened because it is not there.
func isMissing(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, daxmem.ErrNoMemory)
}

// layers compares what the snapshots need with what the pool has.
func (d *doctor) layers() {
	lost, err := lostLayers(d.ctx, d.cfg)
	switch {
	case err != nil:
		d.add("layers", warn, "what the snapshots need is not known: "+oneLine(err), "")
	case len(lost) > 0:
		d.add("layers", fail, plural(len(lost), "layer")+" that snapshots need is not in the pool, or not sound: their images cannot run",
			"the daemon brings back what it can at its start, and its log says what it cannot: docs/operating.md, \"Recovery\"")
	default:
		d.add("layers", ok, "all that the snapshots need is in the pool", "")
	}
}

// answerWait is how long the doctor waits for an answer.
const answerWait = 5 * time.Second

// daemon asks the daemon something.
func (d *doctor) daemon() {
	sn, done, err := connect(d.cfg)
	if err != nil {
		remedy := "systemctl start containerd-daxfs, and see its journal"
		if owner := poolOwner(d.cfg.Pool.Path); owner != nil {
			remedy = fmt.Sprintf("%s (pid %d) has the pool open: is --address right?", owner.Command, owner.PID)
		}
		d.add("daemon", fail, oneLine(err), remedy)
		return
	}
	defer done()
	ctx, cancel := context.WithTimeout(d.ctx, answerWait)
	defer cancel()
	if _, err := sn.Stat(ctx, "daxfsctl doctor"); err != nil && !errdefs.IsNotFound(err) {
		d.add("daemon", fail, fmt.Sprintf("%s: no sensible answer: %s", d.cfg.Address, oneLine(err)), "see the daemon's journal")
		return
	}
	d.add("daemon", ok, "answers on "+d.cfg.Address, "")
	if fi, err := os.Stat(d.cfg.Address); err == nil && fi.Mode().Perm()&0o077 != 0 {
		d.add("socket_mode", warn, fmt.Sprintf("%s has mode %04o: others than root can command the snapshotter", d.cfg.Address, fi.Mode().Perm()),
			"chmod 600 "+d.cfg.Address)
	}
}
