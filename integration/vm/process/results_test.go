package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// result is what one test of package inside said, with its subtests.
type result struct {
	name   string
	action string // pass, fail, skip; "" if it did not come to an end
	output strings.Builder
	subs   []*result
}

// parse reads the output of a test binary that ran with -test.v=test2json.
func parse(output []byte) (*result, error) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(output)
	events, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	top := &result{}
	byName := map[string]*result{"": top}
	var find func(name string) *result
	find = func(name string) *result {
		if r := byName[name]; r != nil {
			return r
		}
		parent, base := top, name
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			parent, base = find(name[:i]), name[i+1:]
		}
		r := &result{name: base}
		parent.subs = append(parent.subs, r)
		byName[name] = r
		return r
	}
	s := bufio.NewScanner(bytes.NewReader(events))
	s.Buffer(nil, 1<<24)
	for s.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("test event %q: %w", s.Bytes(), err)
		}
		r := find(e.Test)
		switch e.Action {
		case "output":
			if !strings.HasPrefix(strings.TrimLeft(e.Output, " "), "=== ") {
				r.output.WriteString(e.Output)
			}
		case "pass", "fail", "skip":
			r.action = e.Action
		}
	}
	return top, s.Err()
}

// insideRun chooses among the tests inside; -run cannot, since they run before
// it is asked about their names.
var insideRun = flag.String("inside", ".", "run the tests of package inside that match this regular expression")

// runner runs the test binary of package inside with arguments, in a place of
// its own, and returns its output. That tests failed is an error too.
type runner interface {
	run(t *testing.T, args ...string) ([]byte, error)
	// trouble returns what the kernel reported while a test ran.
	trouble(test string) []string
}

// runInside runs the tests of package inside and reports them as subtests of t.
// All run in one process; where a test takes that, or the guest, along, another
// one runs those behind it.
func runInside(t *testing.T, r runner) {
	list, err := r.run(t, "-test.list="+*insideRun)
	if err != nil {
		t.Fatalf("list the tests inside: %v\n%s", err, list)
	}
	todo := strings.Fields(string(list))
	for len(todo) > 0 {
		out, runErr := r.run(t, "-test.run=^("+strings.Join(todo, "|")+")$", "-test.v=test2json",
			"-test.timeout=45m", fmt.Sprintf("-test.short=%v", testing.Short()))
		top, err := parse(out)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range top.subs {
			t.Run(s.name, func(t *testing.T) {
				if lines := r.trouble(s.name); len(lines) > 0 {
					t.Errorf("the kernel reports:\n%s", strings.Join(lines, "\n"))
				}
				s.report(t) // which may end t
			})
			todo = slices.DeleteFunc(todo, func(name string) bool { return name == s.name })
		}
		if len(top.subs) == 0 {
			t.Fatalf("no test ran, %d are left: %v\n%s", len(todo), runErr, out)
		}
		if runErr != nil && !t.Failed() {
			t.Errorf("all tests passed, but %v\n%s", runErr, top.output.String())
		}
	}
}

// report gives the result to a test of ours.
func (r *result) report(t *testing.T) {
	for _, s := range r.subs {
		t.Run(s.name, s.report)
	}
	out := strings.TrimSpace(r.output.String())
	switch r.action {
	case "pass":
	case "skip":
		t.Skip(out)
	case "fail":
		t.Error(out)
	default:
		t.Errorf("did not come to an end\n%s", out)
	}
}
