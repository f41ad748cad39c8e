// Package sweep removes whatever a lab has left on the machine, however it
// ended: processes, mounts, loop devices, cgroups, sockets, files. Everything is
// recognised by the lab's own directory, which has a random name, so nothing
// that belongs to anyone else is touched.
package sweep

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// programs are the only ones that are ever killed for having the lab's
// directory in their arguments: a pager that shows a log there is not ours.
var programs = map[string]bool{
	"containerd": true, "containerd-shim-runc-v2": true, "ctr": true, "runc": true,
	"containerd-daxfs-grpc": true, "standin": true, "stargz": true,
}

// All ends and removes everything that belongs to the lab in dir, and dir.
func All(dir string) error {
	var errs []error
	errs = append(errs, Processes(dir), Mounts(dir), Loops(dir))
	ShimSockets(dir)
	cgroups(filepath.Base(dir))
	// Never with mounts below: RemoveAll would follow them.
	if left, err := MountsBelow(dir); err != nil || len(left) > 0 {
		return errors.Join(append(errs, err, fmt.Errorf("mounts left below %s: %q", dir, left))...)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// Processes kills, by pid, the lab's daemons, shims and containers, and waits
// until they are gone.
func Processes(dir string) error {
	for range 100 {
		pids := processesOf(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // gone already is fine
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("processes %v of %s do not die", processesOf(dir), dir)
}

// processesOf finds our programs by their arguments, everything that descends
// from them, and containers that have lost their shim by the root they run on.
func processesOf(dir string) []int {
	type proc struct{ parent int }
	procs := map[int]proc{}
	ours := map[int]bool{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		base := "/proc/" + e.Name()
		stat, err := os.ReadFile(base + "/stat")
		if err != nil {
			continue
		}
		// "pid (comm) state ppid …", and comm may hold anything.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		ppid, _ := strconv.Atoi(f[1])
		procs[pid] = proc{ppid}
		exe, _ := os.Readlink(base + "/exe")
		args, _ := os.ReadFile(base + "/cmdline")
		name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
		if programs[name] && bytes.Contains(args, []byte(dir+"/")) {
			ours[pid] = true
		}
		if rootOf(base+"/mountinfo", dir) {
			ours[pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for pid, p := range procs {
			if !ours[pid] && ours[p.parent] {
				ours[pid], grown = true, true
			}
		}
	}
	var pids []int
	for pid := range ours {
		pids = append(pids, pid)
	}
	sort.Ints(pids)
	return pids
}

// rootOf reports whether the root mount in a mountinfo file is made of
// something in dir.
func rootOf(mountinfo, dir string) bool {
	mounts, err := readMounts(mountinfo)
	if err != nil {
		return false
	}
	for _, m := range mounts {
		if m.Point == "/" && strings.Contains(m.Super, dir+"/") {
			return true
		}
	}
	return false
}

// Mount is one line of /proc/self/mountinfo.
type Mount struct {
	ID     int
	Point  string
	Type   string
	Source string
	Super  string // super block options
}

// Mounted returns the mounts of this process.
func Mounted() ([]Mount, error) { return readMounts("/proc/self/mountinfo") }

func readMounts(file string) ([]Mount, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []Mount
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// 36 35 98:0 /root /point options [tags] - type source super-options
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		id, _ := strconv.Atoi(l[0])
		mounts = append(mounts, Mount{id, unescape(l[4]), r[0], unescape(r[1]), unescape(r[2])})
	}
	return mounts, s.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// MountsBelow returns mount points at or below dir, and those elsewhere of file
// systems made from something in dir, in the order they were mounted.
func MountsBelow(dir string) ([]string, error) {
	mounts, err := Mounted()
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range mounts {
		if m.Point == dir || strings.HasPrefix(m.Point, dir+"/") || strings.HasPrefix(m.Source, dir+"/") ||
			strings.Contains(m.Super, dir+"/") {
			points = append(points, m.Point)
		}
	}
	return points, nil
}

// Mounts unmounts everything that MountsBelow finds, last first.
func Mounts(dir string) error {
	for range 3 {
		points, err := MountsBelow(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for i := len(points) - 1; i >= 0; i-- {
			if unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW) != nil {
				_ = unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			}
		}
	}
	return nil
}

// LoopsOf returns the loop devices backed by files in dir.
func LoopsOf(dir string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var devices []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), dir+"/") {
			devices = append(devices, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devices
}

// Loops detaches the loop devices backed by files in dir.
func Loops(dir string) error {
	var errs []error
	for _, device := range LoopsOf(dir) {
		f, err := os.Open(device)
		if err == nil {
			err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
			f.Close()
		}
		if err != nil && !errors.Is(err, unix.ENXIO) { // gone by itself
			errs = append(errs, fmt.Errorf("detach %s: %w", device, err))
		}
	}
	return errors.Join(errs...)
}

// ShimSockets removes the sockets of killed shims, which live outside the lab's
// directory but are named in it.
func ShimSockets(dir string) {
	files, _ := filepath.Glob(dir + "/state/io.containerd.runtime.v2.task/*/*/bootstrap.json")
	for _, f := range files {
		var b struct {
			Address string `json:"address"`
		}
		data, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(data, &b) != nil {
			continue
		}
		if path, ok := strings.CutPrefix(b.Address, "unix://"); ok {
			os.Remove(path)
		}
	}
}

// cgroups removes the emptied cgroups of namespaces named after the lab.
func cgroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/" + name + "*", "/sys/fs/cgroup/*/" + name + "*"} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				os.Remove(dirs[i])
			}
		}
	}
}
