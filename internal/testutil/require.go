// Package testutil holds what tests of several packages share.
package testutil

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// RequireVar names the environment variable that lists, separated by commas,
// what the machine must have: "root", "containerd", "tools". A test whose need
// is listed there fails where it would be skipped.
const RequireVar = "DAXFS_TEST_REQUIRE"

// Missing skips the test because of what the machine lacks, or fails it if
// need is listed in RequireVar.
func Missing(t testing.TB, need, format string, args ...any) {
	t.Helper()
	for _, r := range strings.Split(os.Getenv(RequireVar), ",") {
		if strings.TrimSpace(r) == need {
			t.Fatalf(format, args...)
		}
	}
	t.Skipf(format, args...)
}

// Root needs uid 0.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", "needs root, runs as uid %d", os.Geteuid())
	}
}

// Tool needs a program in PATH and returns its place.
func Tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		Missing(t, "tools", "needs the program %s: %v", name, err)
	}
	return p
}
