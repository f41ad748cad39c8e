package inside

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
)

// config is what there is to test.
var config *Config

// The main thread is the test's own: it must not become a user's (asUser).
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	flag.Parse()
	path := os.Getenv(ConfigEnv)
	if path == "" {
		if flag.Lookup("test.list").Value.String() == "" {
			fmt.Println("SKIP: runs in a guest, see package process")
			return
		}
		os.Exit(m.Run())
	}
	var err error
	if config, err = readConfig(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// daxfsOnly skips a test on the EROFS view, of which it asks too much.
func daxfsOnly(t *testing.T) {
	t.Helper()
	if config.FS != "daxfs" {
		t.Skipf("%s does not promise this", config.FS)
	}
}

// must fails the test at once.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
