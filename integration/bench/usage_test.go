package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseCounters(t *testing.T) {
	const (
		stat = "12 (a) b) S 1 12 12 0 -1 4194560 1 2 3 4 150 50 20 5 20 0 9 0 100 1 2"
		io   = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n"
	)
	c, err := parseCounters(stat, io)
	want := counters{cpu: 2250 * time.Millisecond, children: 250 * time.Millisecond, written: 4096}
	if err != nil || c != want {
		t.Errorf("got %+v, %v, want %+v", c, err, want)
	}
	for _, bad := range [][2]string{{"12 (a) S 1", io}, {stat, "rchar: 1\n"}, {stat, "write_bytes: x\n"}} {
		if c, err := parseCounters(bad[0], bad[1]); err == nil {
			t.Errorf("%q: got %+v and no error", bad, c)
		}
	}
}

func TestParseDiskstats(t *testing.T) {
	const stats = "   7       0 loop0 1 2 3 4 5 6 7 8 9 10 11\n 254       0 vda 10 0 80 1 20 0 1000 2 0 3 4 0 0 0 0\n"
	if got := parseDiskstats(stats, 254, 0); got != 512000 {
		t.Errorf("got %d bytes, want 512000", got)
	}
	if got := parseDiskstats(stats, 254, 1); got != -1 {
		t.Errorf("another disk: got %d, want -1", got)
	}
}

// The kernel's own account of a program's CPU time is the judge.
func TestMeterCountsChildren(t *testing.T) {
	m, err := begin(map[string]int{"me": os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	u, err := m.end()
	if err != nil {
		t.Fatal(err)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if d := u.Children["me"] - took; d < -3*tick || d > 3*tick || took < 5*tick {
		t.Errorf("got %v for programs, the program took %v", u.Children["me"], took)
	}
	if u.CPU["me"] < u.Children["me"] || u.Anon < 1<<20 {
		t.Errorf("got %+v", u)
	}
}
