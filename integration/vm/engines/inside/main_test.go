package inside

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/containerd/log"
)

var (
	bg       = context.Background()
	location string
	address  uint64
)

func TestMain(m *testing.M) {
	flag.Parse()
	location = os.Getenv(LocationVar)
	if location == "" {
		if flag.Lookup("test.list").Value.String() == "" {
			fmt.Println("SKIP: runs in a guest, see package engines")
			return
		}
		os.Exit(m.Run())
	}
	var err error
	if address, err = strconv.ParseUint(os.Getenv(AddressVar), 0, 64); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := log.SetLevel("warn"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
