package integration

import (
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/integration/lab"
)

// The two example configurations work together as they stand: only the paths
// that both name are another place here. ctr does the rest, as a user would.
func TestExampleConfigurations(t *testing.T) {
	if lab.Standin() {
		t.Skip("the stand-in reads no configuration")
	}
	l := lab.New(t, lab.Config{Examples: true})
	ctx := l.Namespace("examples")
	l.Image("debian")
	ref := l.Ref("debian")
	ctr := func(args ...string) string {
		t.Helper()
		out, err := l.Ctr(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ctr("images", "pull", "--plain-http", "--snapshotter", lab.Daxfs, ref)
	run := []string{"run", "--rm", "--snapshotter", lab.Daxfs, "--fifo-dir", l.Dir + "/fifo", "--runc-root", l.Dir + "/runc", ref, "once", "cat", "/app/data/only"}
	if out := ctr(run...); out != "one\n" {
		t.Errorf("ctr run: %q", out)
	}
	// The client-side unpack of ctr passes no labels.
	ctr("images", "rm", "--sync", ref)
	ctr("images", "pull", "--local", "--plain-http", "--snapshotter", lab.Daxfs, ref)
	if out := ctr(run...); out != "one\n" {
		t.Errorf("ctr run after pull --local: %q", out)
	}
	if out := ctr("plugins", "ls"); !strings.Contains(out, lab.Daxfs) {
		t.Errorf("no plugin daxfs:\n%s", out)
	}
	if out := ctr("snapshots", "--snapshotter", lab.Daxfs, "usage"); !strings.Contains(out, "sha256:") {
		t.Errorf("ctr snapshots usage:\n%s", out)
	}
	ctr("images", "rm", "--sync", ref)
	l.NothingMounted()
}
