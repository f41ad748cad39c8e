package main

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v3"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ctr-daxfs": main})
}

// names lists all commands and flags below a command.
func names(cmd *cli.Command, path string, all map[string]bool) map[string]bool {
	for _, f := range cmd.Flags {
		all[path+" --"+f.Names()[0]] = true
	}
	for _, c := range cmd.Commands {
		all[path+" "+c.Name] = true
		names(c, path+" "+c.Name, all)
	}
	return all
}

// All of ctr is there, and our additions are all that is more. The commands are
// global variables of ctr: this is the only test that changes them.
func TestWholeOfCtr(t *testing.T) {
	stock := names(app.New(), "", map[string]bool{})
	root := app.New()
	if err := extend(root); err != nil {
		t.Fatal(err)
	}
	more := names(root, "", map[string]bool{})
	for name := range stock {
		if !more[name] {
			t.Errorf("ctr has %q, ctr-daxfs does not", name)
		}
		delete(more, name)
	}
	for _, want := range []string{" images convert --daxfs", " images convert --daxfs-compression", " images convert --index", " images export-oci"} {
		if !more[want] {
			t.Errorf("no %q", want)
		}
	}
	for name := range more {
		if !strings.HasPrefix(name, " images convert --") && !strings.HasPrefix(name, " images export-oci") {
			t.Errorf("%q is new", name)
		}
	}
}

// TestScripts runs testdata/*.txtar.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireUniqueNames: true})
}
