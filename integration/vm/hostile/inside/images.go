package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// workers is how many processes mount images at the same time: one for each of
// the guest's CPUs, and one that waits while others unmount.
const workers = 3

// images runs Images: the workers, and the comparison of before and after.
func images(task *Task, r region) (*Report, error) {
	release, err := anchor(task, r)
	if err != nil {
		return nil, err
	}
	rep := newReport()
	before, err := takeState()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var procs []*process
	for i := range workers {
		procs = append(procs, spawn(imagesWorker, i, workers))
	}
	watch(rep, procs)
	rep.Seconds = time.Since(start).Seconds()
	if rep.Images != len(task.Images) {
		rep.broken("%d of %d images were visited", rep.Images, len(task.Images))
	}
	if err := before.compare(rep); err != nil {
		return nil, err
	}
	return rep, release()
}

// imagesWork visits each count-th image.
func imagesWork(task *Task, r region, index, count int) (*Report, error) {
	// Its mounts are nobody else's business.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	var cpu unix.CPUSet
	cpu.Set(index % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &cpu); err != nil {
		return nil, fmt.Errorf("stay on CPU %d: %w", index%runtime.NumCPU(), err)
	}
	if task.Via == ViaDmabuf {
		f, err := anchorDmabuf()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r.dmabuf = f
	}
	at := filepath.Join(dir, fmt.Sprintf("worker%d", index))
	for _, sub := range []string{"image", "overlay"} {
		if err := os.MkdirAll(filepath.Join(at, sub), 0o755); err != nil {
			return nil, err
		}
	}
	rep := newReport()
	for n := index; n < len(task.Images); n += count {
		begin(n)
		v := newVisit(rep, fmt.Sprintf("%s-image%d", task.Via, n), uint64(n))
		v.exec = v.IntN(4) == 0
		v.mounted(r, task.Images[n], at)
	}
	return rep, nil
}

// mounted mounts the image at offset below dir, visits and unmounts it.
func (v *visit) mounted(r region, offset int64, dir string) {
	v.Images++
	// Without the check at mount, every later one counts.
	option := "validate"
	if v.IntN(2) == 0 {
		option = "novalidate"
	}
	at := filepath.Join(dir, "image")
	start := time.Now()
	err := mount(r, offset, at, v.image, option)
	v.took("mount", v.image, start)
	if err != nil {
		v.Mounts[option+" "+errorName(err)]++
		return
	}
	v.Mounts[option+" ok"]++
	start = time.Now()
	if v.IntN(2) == 0 {
		v.handles(at)
	}
	v.tree(at)
	v.ownHandles(at)
	if v.IntN(8) == 0 {
		v.overlay(at, dir)
	}
	v.took("use", v.image, start)
	start = time.Now()
	err = unmount(at)
	v.took("unmount", v.image, start)
	if err != nil {
		v.broken("%s: unmount: %v", v.image, err)
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
}

// overlay puts a writable overlay on the image, visits it and changes it.
func (v *visit) overlay(lower, dir string) {
	at, upper, work := filepath.Join(dir, "overlay"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			v.broken("%s: %v", v.image, err)
			return
		}
		defer os.RemoveAll(d)
	}
	err := unix.Mount("none", at, "overlay", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	if !v.call("mount overlay", err) {
		return
	}
	v.tree(at)
	v.modify(at)
	if err := unmount(at); err != nil {
		v.broken("%s: unmount overlay: %v", v.image, err)
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
}

// modify does what makes an overlay copy up the names of its root.
func (v *visit) modify(root string) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !v.call("open directory", err) {
		return
	}
	names := v.list(fd)
	unix.Close(fd)
	for i, name := range names[:min(len(names), 20)] {
		path := root + "/" + name
		// The copy is the guest's memory.
		var st unix.Stat_t
		if !v.call("lstat", unix.Lstat(path, &st)) || st.Size > readMax {
			continue
		}
		v.call("lchown", unix.Lchown(path, i, i))
		if i%2 == 0 {
			v.call("rename", unix.Rename(path, root+"/new"))
		} else {
			v.call("remove", os.RemoveAll(path))
		}
	}
	v.call("mkdir", unix.Mkdir(root+"/made", 0o755))
}
