package instances

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// tree is a directory of the form that multikernel's file system has.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) *tree {
	t.Helper()
	tr := &tree{t, t.TempDir()}
	if err := os.Mkdir(filepath.Join(tr.dir, "instances"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr.write("device_tree", "")
	return tr
}

func (tr *tree) write(path, text string) {
	tr.t.Helper()
	file := filepath.Join(tr.dir, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) remove(path string) {
	tr.t.Helper()
	if err := os.RemoveAll(filepath.Join(tr.dir, path)); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) set(name, status string) { tr.write("instances/"+name+"/status", status+"\n") }

// Only what says that nothing runs is taken for that.
func TestMultikernelStates(t *testing.T) {
	tr := newTree(t)
	for word, want := range map[string]State{
		"active": Running,
		"ready":  Stopped, "empty": Stopped,
		"loaded": Unclear, "loading": Unclear, "failed": Unclear, "unknown": Unclear,
		"": Unclear, "rea": Unclear, "READY": Unclear, "ready ready": Unclear, "paused": Unclear,
	} {
		tr.set("vm", word)
		list, err := (&Multikernel{tr.dir}).List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := list.Of("vm"); got.State != want || got.Word != word {
			t.Errorf("%q: %+v, want %v", word, got, want)
		}
		if got := list.Of("other"); got.State != Absent {
			t.Errorf("an instance that is not there: %+v", got)
		}
	}
}

// An instance without a status, or with one that cannot be read, may run.
func TestMultikernelTorn(t *testing.T) {
	tr := newTree(t)
	tr.write("instances/bare/id", "1\n")
	tr.write("instances/strange/status/x", "ready")
	tr.write("instances/file", "ready")
	tr.set("good", "ready")
	list, err := (&Multikernel{tr.dir}).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bare", "strange", "file"} {
		if got := list.Of(name); got.State != Unclear || got.Word == "" {
			t.Errorf("%s: %+v, want unclear with a reason", name, got)
		}
	}
	if got := list.Of("good"); got.State != Stopped {
		t.Errorf("beside them: %+v", got)
	}
}

// A file system that is not there, or not all of it, says nothing about anybody.
func TestMultikernelMissing(t *testing.T) {
	for name, c := range map[string]struct {
		remove []string
		file   bool
	}{
		"no file system":    {remove: []string{"device_tree", "instances"}},
		"no device tree":    {remove: []string{"device_tree"}},
		"no instances":      {remove: []string{"instances"}},
		"a file for a list": {remove: []string{"instances"}, file: true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			for _, path := range c.remove {
				tr.remove(path)
			}
			if c.file {
				tr.write("instances", "")
			}
			list, err := (&Multikernel{tr.dir}).List(t.Context())
			if err == nil || list != nil {
				t.Fatalf("%v, %v, want an error", list, err)
			}
			if errdefs.IsUnavailable(err) == c.file {
				t.Errorf("%v: unavailable is %v", err, !c.file)
			}
		})
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	tr := newTree(t)
	tr.set("vm", "ready")
	if list, err := (&Multikernel{tr.dir}).List(stopped); err == nil {
		t.Errorf("a list that was broken off: %v", list)
	}
}

func TestNew(t *testing.T) {
	for text, want := range map[string]string{
		"multikernel":         "multikernel, /sys/fs/multikernel",
		"multikernel:/mnt/mk": "multikernel, /mnt/mk",
	} {
		o, err := New(text)
		if err != nil || o.String() != want {
			t.Errorf("%s: %v, %v", text, o, err)
		}
	}
	for _, text := range []string{"", "kerf", "multikernel:", "multikernel:mk", ":/mnt"} {
		if o, err := New(text); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "multikernel:DIR") {
			t.Errorf("%q: %v, %v", text, o, err)
		}
	}
}
