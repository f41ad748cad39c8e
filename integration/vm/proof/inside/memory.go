package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// measureMemory reads what this kernel uses now. Processes of programs named
// like this one, in containers, are those whose smaps are summed.
func measureMemory(containers []*container) (*protocol.Memory, error) {
	// Folds the per-CPU parts of the counters in (Documentation/admin-guide/sysctl/vm.rst).
	if err := os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0); err != nil {
		return nil, err
	}
	info, err := meminfo()
	if err != nil {
		return nil, err
	}
	listed, err := perCPUListPages()
	if err != nil {
		return nil, err
	}
	m := &protocol.Memory{
		Free:         info["MemFree"] + listed*pageSize,
		Available:    info["MemAvailable"],
		Cached:       info["Cached"] + info["Buffers"] - info["Shmem"],
		Shmem:        info["Shmem"],
		Slab:         info["Slab"],
		PageTables:   info["PageTables"],
		KernelStacks: info["KernelStack"],
		Percpu:       info["Percpu"],
		Anon:         info["AnonPages"],
	}
	for _, c := range containers {
		workers, err := children(c.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		for _, pid := range workers {
			if err := addSmaps(m, pid); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// meminfo returns /proc/meminfo in bytes.
func meminfo() (map[string]int64, error) { return fields("/proc/meminfo") }

// fields reads a file of lines "Name:  N kB" into bytes; other lines are left out.
func fields(name string) (map[string]int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m := make(map[string]int64)
	for line := range strings.Lines(string(b)) {
		var (
			key string
			n   int64
		)
		if scan(strings.TrimSpace(line), "%s %d kB", &key, &n) {
			m[strings.TrimSuffix(key, ":")] = n << 10
		}
	}
	return m, nil
}

// perCPUListPages returns the free pages in the per-CPU lists, which
// /proc/meminfo counts as used.
func perCPUListPages() (pages int64, err error) {
	f, err := os.Open("/proc/zoneinfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// "  pagesets", then for each CPU "    cpu: N", "              count:    N",
	// "high:", "batch:". No other line begins with "count:".
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var n int64
		if scan(strings.TrimSpace(lines.Text()), "count: %d", &n) {
			pages += n
		}
	}
	return pages, nil
}

// children returns the processes whose parent is pid.
func children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			return nil, err
		}
		for _, s := range bytes.Fields(b) {
			n, err := strconv.Atoi(string(s))
			if err != nil {
				return nil, err
			}
			pids = append(pids, n)
		}
	}
	return pids, nil
}

func addSmaps(m *protocol.Memory, pid int) error {
	s, err := fields(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return err
	}
	m.Processes++
	m.Rss += s["Rss"]
	m.PssAnon += s["Pss_Anon"]
	m.PssFile += s["Pss_File"] + s["Pss_Shmem"]
	return nil
}
