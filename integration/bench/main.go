// Command bench measures pulls: our snapshotter and differ beside the other
// snapshotters that containerd has, in one run, over the same images from a
// registry on the loopback interface. It writes raw numbers into docs/bench and
// from them the tables and plots in docs/benchmarks.md. Run it at the root of the
// repository, as root, on a quiet machine; "make bench-pull" does.
//
//	bench                     measure and write
//	bench -measure ""         write again from the raw numbers
//	bench -measure pull -rounds 9 -images bench-llvm
//
// With -check it fails if a target is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/images"
)

// options is the command line.
type options struct {
	measure        []string // parts
	images, peers  []string // of the part "pull"
	cold           []string // images that are pulled cold too
	unpacked       []string // images of the parts "unpack" and "profile", the same layers in each
	related        []string
	started        string // image of the part "start"
	converted      string // image of that part
	rounds         int
	starts, atOnce int           // containers in a round, one by one and all at once
	timeout        time.Duration // of all that is measured
	out, doc       string
	check          bool
}

// parts in the order in which they are measured. Each has a raw file.
var parts = []string{"pull", "unpack", "related", "start", "converted", "profile"}

func main() {
	log.SetFlags(log.Ltime)
	log.SetPrefix("bench: ")
	o, err := parse(os.Args[1:])
	if err != nil {
		os.Exit(2) // package flag has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func parse(args []string) (*options, error) {
	o := &options{related: images.Related, started: "bench-debian", converted: "bench-python"}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	measure := f.String("measure", strings.Join(parts, ","), "`parts` to measure, with commas; those that are not keep their raw numbers")
	imgs := f.String("images", "bench-debian,bench-debian-zstd,bench-python,bench-llvm,bench-npm", "`images` to pull")
	cold := f.String("cold", "bench-python", "`images` to pull also with the registry's files out of the page cache")
	unpacked := f.String("unpack-images", "bench-python,"+zstdImage, "`images` to unpack, and to profile that")
	peers := f.String("peers", "overlayfs,erofs,stargz,daxfs-file,daxfs", "`snapshotters` to pull with; daxfs-file is daxfs with its pool in a file on disk")
	f.IntVar(&o.rounds, "rounds", 5, "how often each snapshotter has its turn")
	f.IntVar(&o.starts, "starts", 8, "containers started one by one in a round")
	f.IntVar(&o.atOnce, "at-once", 50, "containers started at once in a round")
	f.DurationVar(&o.timeout, "timeout", 90*time.Minute, "the most that all measurements may take, images to be made included")
	f.StringVar(&o.out, "out", "docs/bench", "`directory` of the raw numbers and the plots")
	f.StringVar(&o.doc, "doc", "docs/benchmarks.md", "`file` whose part between the marks is replaced; empty for standard output")
	f.BoolVar(&o.check, "check", false, "fail if a target is missed")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.measure, o.images, o.cold, o.peers = list(*measure), list(*imgs), list(*cold), list(*peers)
	o.unpacked = list(*unpacked)
	bad := func() error {
		if f.NArg() > 0 {
			return fmt.Errorf("argument %q is not expected", f.Arg(0))
		}
		for _, n := range []int{o.rounds, o.starts, o.atOnce} {
			if n < 1 {
				return errors.New("want numbers above 0")
			}
		}
		return errors.Join(known("-measure", o.measure, parts), known("-peers", o.peers, peerNames()))
	}()
	if bad != nil {
		fmt.Fprintln(f.Output(), bad)
		f.Usage()
	}
	return o, bad
}

func known(flag string, got, all []string) error {
	for _, g := range got {
		if !strings.Contains(","+strings.Join(all, ",")+",", ","+g+",") {
			return fmt.Errorf("%s %s: want some of %s", flag, strconv.Quote(g), strings.Join(all, ", "))
		}
	}
	return nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// rawPath is the raw file of a part.
func (o *options) rawPath(part string) string { return filepath.Join(o.out, "peers-"+part+".txt") }

func run(ctx context.Context, o *options) error {
	if len(o.measure) > 0 {
		if err := attempt(ctx, o); err != nil {
			return err
		}
	}
	return render(o)
}

// attempt measures, and turns what would fail a test into an error.
func attempt(ctx context.Context, o *options) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	t := &runner{}
	defer func() { err = errors.Join(err, t.end(recover())) }()
	return measure(ctx, t, o)
}

// command is this program's command line, for the raw files' heads.
func command() string { return strings.TrimSpace("bench " + strings.Join(os.Args[1:], " ")) }
