package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what daemons, with the programs that they have run and waited for,
// have used in some time.
type usage struct {
	CPU map[string]time.Duration `json:"cpu,omitempty"` // user and system, by daemon
	// Children is what of CPU went to programs that the daemons have run.
	Children map[string]time.Duration `json:"children,omitempty"`
	// Written is what they have caused to be written to disks, file system
	// journals apart (write_bytes, proc_pid_io(5)).
	Written map[string]int64 `json:"written,omitempty"`
	// Anon is the most memory of their own, not shared and not of files, that
	// they and the programs had together, as seen every 50 ms.
	Anon int64 `json:"anon,omitempty"`
}

// meter measures usage between begin and end.
type meter struct {
	pids   map[string]int
	before map[string]counters
	stop   chan struct{}
	done   sync.WaitGroup
	anon   int64
}

// counters of one process and those of its children that it has waited for.
type counters struct {
	cpu, children time.Duration
	written       int64
}

func begin(pids map[string]int) (*meter, error) {
	m := &meter{pids: pids, stop: make(chan struct{})}
	var err error
	if m.before, err = countAll(pids); err != nil {
		return nil, err
	}
	m.done.Go(func() {
		for {
			m.anon = max(m.anon, anonOf(pids))
			select {
			case <-m.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return m, nil
}

func (m *meter) end() (usage, error) {
	close(m.stop)
	m.done.Wait()
	after, err := countAll(m.pids)
	if err != nil {
		return usage{}, err
	}
	u := usage{CPU: map[string]time.Duration{}, Children: map[string]time.Duration{}, Written: map[string]int64{}, Anon: m.anon}
	for name, a := range after {
		b := m.before[name]
		keep(u.CPU, name, a.cpu-b.cpu)
		keep(u.Children, name, a.children-b.children)
		keep(u.Written, name, a.written-b.written)
	}
	return u, nil
}

// keep keeps what is not nothing: raw files are long enough.
func keep[N time.Duration | int64](in map[string]N, name string, n N) {
	if n != 0 {
		in[name] = n
	}
}

func (u usage) cpu() time.Duration {
	var sum time.Duration
	for _, d := range u.CPU {
		sum += d
	}
	return sum
}

func countAll(pids map[string]int) (map[string]counters, error) {
	all := map[string]counters{}
	for name, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, err
		}
		io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			return nil, err
		}
		c, err := parseCounters(string(stat), string(io))
		if err != nil {
			return nil, fmt.Errorf("counters of %s: %w", name, err)
		}
		all[name] = c
	}
	return all, nil
}

// tick is the unit of times in /proc/PID/stat: USER_HZ is 100 on all
// architectures that containerd runs on.
const tick = time.Second / 100

// parseCounters reads proc_pid_stat(5) and proc_pid_io(5).
func parseCounters(stat, io string) (counters, error) {
	// "pid (comm) state ppid …", and comm may hold anything.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 15 {
		return counters{}, fmt.Errorf("%d fields in %q, want 15 at least", len(f), stat)
	}
	var times [4]time.Duration // utime, stime, cutime, cstime: fields 14 to 17
	for i := range times {
		n, err := strconv.ParseInt(f[11+i], 10, 64)
		if err != nil {
			return counters{}, err
		}
		times[i] = time.Duration(n) * tick
	}
	c := counters{cpu: times[0] + times[1] + times[2] + times[3], children: times[2] + times[3]}
	fields := map[string]int64{}
	for line := range strings.Lines(io) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil {
			return counters{}, err
		}
		fields[key] = n
	}
	n, ok := fields["write_bytes"]
	if !ok {
		return counters{}, fmt.Errorf("no write_bytes in %q", io)
	}
	// What was truncated before it got to the disk was never written.
	c.written = n - fields["cancelled_write_bytes"]
	return c, nil
}

// anonOf adds up the anonymous memory of processes and their descendants.
func anonOf(pids map[string]int) int64 {
	var sum int64
	for _, pid := range pids {
		sum += anonOfTree(pid)
	}
	return sum
}

func anonOfTree(pid int) int64 {
	dir := fmt.Sprintf("/proc/%d", pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0 // has ended
	}
	var sum int64
	if _, rest, ok := bytes.Cut(status, []byte("RssAnon:")); ok {
		f := bytes.Fields(rest[:max(0, bytes.IndexByte(rest, '\n'))])
		if len(f) == 2 {
			kb, _ := strconv.ParseInt(string(f[0]), 10, 64)
			sum = kb << 10
		}
	}
	tasks, _ := filepath.Glob(dir + "/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				sum += anonOfTree(child)
			}
		}
	}
	return sum
}

// diskWritten is what has been written to the disk that holds path since the
// machine has started, in bytes, by anybody; -1 if no disk is behind it.
func diskWritten(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0, err
	}
	return parseDiskstats(string(b), unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}

func parseDiskstats(stats string, major, minor uint32) int64 {
	for line := range strings.Lines(stats) {
		f := strings.Fields(line)
		if len(f) > 9 && f[0] == fmt.Sprint(major) && f[1] == fmt.Sprint(minor) {
			if sectors, err := strconv.ParseInt(f[9], 10, 64); err == nil {
				return sectors * 512
			}
		}
	}
	return -1
}
