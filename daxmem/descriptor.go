package daxmem

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// holder is a descriptor of another process, or of this one.
type holder struct{ pid, fd int }

func (h holder) path() string { return fmt.Sprintf("/proc/%d/fd/%d", h.pid, h.fd) }

// findDescriptors lists the descriptors that refer to target, as /proc shows
// it, in all processes that can be looked into.
func findDescriptors(target string) ([]holder, error) {
	links, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []holder
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || to != target {
			continue // closed meanwhile, or a process of somebody else
		}
		parts := strings.Split(l, "/") // "", proc, PID, fd, N
		pid, err1 := strconv.Atoi(parts[2])
		fd, err2 := strconv.Atoi(parts[4])
		if err1 == nil && err2 == nil {
			out = append(out, holder{pid, fd})
		}
	}
	return out, nil
}
