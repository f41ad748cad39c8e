// Package testutil holds what tests of several packages share.
package testutil

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// RequireVar names the environment variable that lists, separated by commas,
// what the machine must have: "root", "containerd", "tools", "vm". A test whose
// need is listed there fails where it would be skipped.
const RequireVar = "DAXFS_TEST_REQUIRE"

// Required reports whether need is listed in RequireVar.
func Required(need string) bool {
	for _, r := range strings.Split(os.Getenv(RequireVar), ",") {
		if strings.TrimSpace(r) == need {
			return true
		}
	}
	return false
}

// Missing skips the test because of what the machine lacks, or fails it if
// need is listed in RequireVar.
func Missing(t testing.TB, need, format string, args ...any) {
	t.Helper()
	if Required(need) {
		t.Fatalf(format, args...)
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

// VM needs kernels booted in QEMU. Fetching and booting them takes minutes, so
// such a test runs only where "vm" is listed.
func VM(t testing.TB) {
	t.Helper()
	if !Required("vm") {
		t.Skipf("needs virtual machines: list vm in %s", RequireVar)
	}
	Root(t)
	Tool(t, "qemu-system-x86_64")
}
