package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// poolOwner finds the process that holds the lock of the pool at a location.
// Asking for the lock could get in the way of one that starts; /proc/locks
// tells it without.
func poolOwner(location string) *ownerJSON {
	l, err := daxmem.ParseLocation(location)
	if err != nil {
		return nil
	}
	file, off, size := l.Lock()
	var st unix.Stat_t
	if file == "" || unix.Stat(file, &st) != nil {
		return nil
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil
	}
	defer f.Close()
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
		lock := strings.Fields(sc.Text())
		if len(lock) < 8 || lock[3] != "WRITE" || lock[5] != inode || !locks(lock, off, size) {
			continue
		}
		pid, err := strconv.Atoi(lock[4])
		if err != nil || pid <= 0 {
			pid = holder(lock)
		}
		if pid == 0 { // of another pid namespace
			return &ownerJSON{Command: "a process that is not visible here"}
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			exe = "unknown"
		}
		return &ownerJSON{pid, escape(filepath.Base(exe))}
	}
	return nil
}

// locks reports whether a line of /proc/locks is an owner's lock, as
// daxmem.Location.Lock has it, or one of a part of its range.
func locks(lock []string, off, size int64) bool {
	if size == 0 {
		return lock[1] == "FLOCK"
	}
	first, err1 := strconv.ParseInt(lock[6], 10, 64)
	last, err2 := strconv.ParseInt(lock[7], 10, 64)
	return lock[1] == "OFDLCK" && err1 == nil && err2 == nil && first < off+size && last >= off
}

// holder finds the process of a lock that belongs to an open file: /proc/locks
// does not tell it, the file's own description does. 0: not to be seen.
func holder(lock []string) int {
	infos, err := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	if err != nil {
		return 0
	}
	for _, info := range infos {
		b, err := os.ReadFile(info)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			// lock:\t1: OFDLCK ADVISORY  WRITE -1 00:06:4 5368709120 6442450943
			v := strings.Fields(line)
			if len(v) == len(lock)+1 && v[0] == "lock:" && slices.Equal(v[2:], lock[1:]) {
				pid, _ := strconv.Atoi(strings.Split(info, "/")[2])
				return pid
			}
		}
	}
	return 0
}
