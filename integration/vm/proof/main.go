// Command proof measures what DAXFS promises, in guests of the lab, and writes
// it into docs/benchmarks.md: how much memory processes, containers and kernels
// use that run one image, with DAXFS and with what else there is; how fast files
// and directories are beside tmpfs in the same guest; and how fast layers come
// into regions beside plain copies, on this machine and in a guest. The raw
// numbers go into docs/bench. Run it at the root of the repository, as root, on a
// quiet machine; "make proof" does.
//
// With -check, which "make proof" gives, it fails if a target is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// options is the command line.
type options struct {
	memory, speed, imports, guestImports, check bool

	kernels    []string // the first alone, then the first two, ...
	processes  []int    // in each container
	containers []int
	engines    []string
	rounds     int
	out, doc   string
}

func main() {
	log.SetFlags(log.Ltime)
	log.SetPrefix("proof: ")
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
	o := &options{}
	f := flag.NewFlagSet("proof", flag.ContinueOnError)
	what := f.String("measure", "memory,speed,import,guest-import", "what to measure, with commas; what is not keeps its raw numbers")
	kernels := f.String("kernels", "6.12,7.3,6.1", "`kernels` of the lab, with commas")
	processes := f.String("processes", "1,8,32", "`numbers` of processes in a container, rising")
	containers := f.String("containers", "1,8", "`numbers` of containers, rising")
	engines := f.String("engines", "overlayfs,erofs,erofs-dax,daxfs", "`engines` to compare")
	f.IntVar(&o.rounds, "rounds", 7, "how often each file system has its turn in the parts about speed")
	f.StringVar(&o.out, "out", "docs/bench", "`directory` of the raw numbers and the plot")
	f.StringVar(&o.doc, "doc", "docs/benchmarks.md", "`file` whose part between the proof's marks is replaced; empty for standard output")
	f.BoolVar(&o.check, "check", false, "fail if a target is missed")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, usage(f, "argument %q is not expected", f.Arg(0))
	}
	for _, w := range list(*what) {
		switch w {
		case "memory":
			o.memory = true
		case "speed":
			o.speed = true
		case "import":
			o.imports = true
		case "guest-import":
			o.guestImports = true
		default:
			return nil, usage(f, "-measure %s: only memory, speed, import and guest-import are known", w)
		}
	}
	o.kernels, o.engines = list(*kernels), list(*engines)
	if len(o.kernels) == 0 || len(o.engines) == 0 {
		return nil, usage(f, "no kernel or no engine")
	}
	for from, to := range map[*string]*[]int{processes: &o.processes, containers: &o.containers} {
		for _, s := range list(*from) {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 {
				return nil, usage(f, "%q: want a number above 0", s)
			}
			*to = append(*to, n)
		}
	}
	return o, nil
}

func usage(f *flag.FlagSet, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	fmt.Fprintln(f.Output(), err)
	f.Usage()
	return err
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func run(ctx context.Context, o *options) error {
	if o.memory || o.speed || o.imports || o.guestImports {
		if err := measure(ctx, o); err != nil {
			return err
		}
	}
	return render(o)
}

// measure makes the raw files anew.
func measure(ctx context.Context, o *options) (err error) {
	work, err := os.MkdirTemp("", "daxfs-proof-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &bench{options: o, work: work}
	if b.inside, err = buildInside(ctx, work); err != nil {
		return err
	}
	for _, part := range []struct {
		name    string
		wanted  bool
		measure func(context.Context) error
	}{
		{"memory", o.memory, b.measureMemory},
		{"speed", o.speed, b.measureSpeed},
		{"import", o.imports, b.measureImport},
		{"import in a guest", o.guestImports, b.measureGuestImport},
	} {
		if !part.wanted {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return fmt.Errorf("measure %s: %w", part.name, err)
		}
	}
	return nil
}

// guestsNote goes into the raw files' heads.
const guestsNote = "guests emulated by QEMU (TCG)"

// command is this program's command line, for the raw files' heads.
func (b *bench) command() string { return "proof " + strings.Join(os.Args[1:], " ") }

// bench is what all parts work with.
type bench struct {
	*options
	work   string // scratch directory that guests see
	inside string // the guests' program
}

func buildInside(ctx context.Context, dir string) (string, error) {
	out := filepath.Join(dir, "inside")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", out, "./integration/vm/proof/inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guests' program: %w\n%s", err, b)
	}
	return out, nil
}
