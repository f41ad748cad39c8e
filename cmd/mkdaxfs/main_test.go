package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"sort"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/daxfs/containerd-daxfs/internal/disk"
	"github.com/daxfs/containerd-daxfs/mkdaxfs"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mkdaxfs": main})
}

// TestScripts runs testdata/*.txtar. Commands beside testscript's own are
// those of scriptCommands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata",
		Cmds: scriptCommands,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("SOURCE_DATE_EPOCH", "")
			return nil
		},
		RequireUniqueNames: true,
	})
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"pack":    cmdPack,
	"mkoci":   cmdMkOCI,
	"ls":      cmdLs,
	"only":    cmdOnly,
	"flip":    cmdFlip,
	"cut":     cmdCut,
	"mounted": cmdMounted,
	"signal":  cmdSignal,
	"exits":   cmdExits,

	"order":    cmdOrder,
	"sametree": cmdSameTree,
}

func fatalIf(ts *testscript.TestScript, err error) {
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

// cmdLs is `ls IMAGE`: one line a file on standard output, links and contents
// included.
func cmdLs(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	fatalIf(ts, err)
	defer f.Close()
	fi, err := f.Stat()
	fatalIf(ts, err)
	img, err := mkdaxfs.Open(f, fi.Size())
	fatalIf(ts, err)
	fsys := img.FS()
	var out strings.Builder
	var walk func(p string)
	walk = func(p string) {
		fi, err := fsys.Lstat(p)
		fatalIf(ts, err)
		in := fi.Sys().(*disk.Inode)
		fmt.Fprintf(&out, "%s %o %d:%d nlink=%d mtime=%d.%09d", p, in.Mode, in.UID, in.GID, in.Nlink, in.Mtime, in.MtimeNsec)
		xs, err := fsys.Xattrs(p)
		fatalIf(ts, err)
		for _, x := range xs {
			fmt.Fprintf(&out, " %s=%q", x.Name, x.Value)
		}
		switch in.Mode & disk.TypeMask {
		case disk.TypeSymlink:
			link, err := fsys.ReadLink(p)
			fatalIf(ts, err)
			fmt.Fprintf(&out, " -> %s", link)
		case disk.TypeRegular:
			r, err := img.Data(in)
			fatalIf(ts, err)
			b := make([]byte, min(r.Size(), 40))
			_, err = io.ReadFull(r, b)
			fatalIf(ts, err)
			fmt.Fprintf(&out, " size=%d %q", in.Size, b)
		case disk.TypeChar, disk.TypeBlock:
			major, minor := disk.DecodeDev(in.Rdev)
			fmt.Fprintf(&out, " dev=%d:%d", major, minor)
		}
		out.WriteByte('\n')
		if fi.IsDir() {
			list, err := img.Dir(in)
			fatalIf(ts, err)
			for i := range list.Len() {
				walk(path.Join(p, string(list.Name(i))))
			}
		}
	}
	walk(".")
	fmt.Fprint(ts.Stdout(), out.String())
}

// cmdOnly is `only DIR NAME...`: the directory has these names and no others,
// hidden ones included.
func cmdOnly(ts *testscript.TestScript, neg bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	fatalIf(ts, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := args[1:]
	sort.Strings(want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		ts.Fatalf("%s holds %q, want %q", args[0], got, want)
	}
}

// cmdExits is `exits CODE PROGRAM ARGS...`.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	var exit *exec.ExitError
	err := ts.Exec(args[1], args[2:]...)
	if !errors.As(err, &exit) || fmt.Sprint(exit.ExitCode()) != args[0] {
		ts.Fatalf("%q: %v, want exit code %s", args[1:], err, args[0])
	}
}
