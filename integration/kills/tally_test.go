package kills

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/load"
)

// tally counts what a run did, so that one that did nothing fails.
type tally struct {
	kills      int
	by         map[string]int // "owner pull": kills of an owner with a pull in flight
	roles      map[string]int
	takeovers  int // by another process of the same boot
	fenced     int // by another kernel, when one was declared gone
	lost       int // kernels that were declared gone
	claims     int // seats that were claimed and not taken
	checked    int64
	containers int // that were compared after a kill
	restarts   int
	starting   time.Duration
	looking    time.Duration
	done       map[string]int
	failed     map[string]int
	read       load.Read
	began      time.Time
}

func newTally() *tally {
	return &tally{by: map[string]int{}, roles: map[string]int{}, done: map[string]int{}, failed: map[string]int{}, began: time.Now()}
}

func (c *tally) kill(role string, doing []string) {
	c.kills++
	c.roles[role]++
	if len(doing) == 0 {
		doing = []string{"nothing"}
	}
	for _, op := range doing {
		c.by[role+" "+op]++
	}
}

// add takes over what the clients of a kernel counted.
func (c *tally) add(l *load.Load) {
	done, failed, read := l.Counts()
	for _, op := range load.Operations {
		c.done[op] += done[op]
		c.failed[op] += failed[op]
	}
	c.read.Files, c.read.Bytes, c.read.Runs = c.read.Files+read.Files, c.read.Bytes+read.Bytes, c.read.Runs+read.Runs
}

func (c *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d kills in %v: %d of the owner, %d of readers", c.kills, time.Since(c.began).Round(time.Second), c.roles["owner"], c.roles["reader"])
	for _, role := range []string{"owner", "reader"} {
		var list []string
		for _, op := range append(load.Operations, "start", "nothing") {
			list = append(list, fmt.Sprintf("%s %d", op, c.by[role+" "+op]))
		}
		t.Logf("in flight at the kills of the %s: %s", role, strings.Join(list, ", "))
	}
	t.Logf("%d takeovers by another process, %d by another kernel after an eviction, %d kernels declared gone, %d claims cut short",
		c.takeovers, c.fenced, c.lost, c.claims)
	t.Logf("checks of the pool read %d bytes; %d times all files of a held container were compared after a kill; in all %d files, %d bytes, %d runs of a program",
		c.checked, c.containers, c.read.Files, c.read.Bytes, c.read.Runs)
	t.Logf("a start took %v in the mean, looking after a kill %v",
		(c.starting / time.Duration(max(1, c.restarts))).Round(time.Millisecond), (c.looking / time.Duration(max(1, c.kills))).Round(time.Millisecond))
	for _, op := range load.Operations {
		t.Logf("%s: %d done, %d not, by a kill or because another was faster", op, c.done[op], c.failed[op])
		if c.done[op] == 0 {
			t.Errorf("%s never succeeded: there was no load", op)
		}
	}
	if c.read.Runs == 0 || c.containers == 0 || c.checked == 0 {
		t.Errorf("%d programs run, %d containers compared, %d bytes checked: want more than 0 of each", c.read.Runs, c.containers, c.checked)
	}
}
