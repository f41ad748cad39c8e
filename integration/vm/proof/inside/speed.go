package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// speed measures file systems against each other in one guest, on the image
// that package protocol describes, and prints protocol.Timing lines. In every round each one has its turn, so that what
// drifts hits all.
func speed(args []string) error {
	f := flag.NewFlagSet("speed", flag.ContinueOnError)
	var p protocol.Pool
	f.Int64Var(&p.Phys, "phys", 0, "physical `address` of the pool")
	f.Int64Var(&p.Size, "size", 0, "`bytes` of the pool")
	rounds := f.Int("rounds", 7, "how often each file system has its turn")
	engines := f.String("engines", "erofs,erofs-dax,daxfs", "what to measure beside tmpfs, with commas")
	scratch := f.String("scratch", "/run/proof-speed", "`directory` to mount below")
	if err := f.Parse(args); err != nil {
		return err
	}
	// The collector would be measured with the rest. It runs in between.
	debug.SetGCPercent(-1)
	runtime.LockOSThread()

	s := &speedRun{pool: p, scratch: *scratch, out: json.NewEncoder(os.Stdout)}
	if err := loadPmem(); err != nil {
		return err
	}
	names := strings.Split(*engines, ",")
	if err := s.makeTmpfs(names[0]); err != nil {
		return err
	}
	for round := range *rounds {
		for _, fs := range append([]string{"tmpfs", "tmpfs-huge"}, names...) {
			fmt.Fprintf(os.Stderr, "speed: round %d of %d: %s\n", round+1, *rounds, fs)
			s.fs, s.round = fs, round
			if err := s.turn(); err != nil {
				return fmt.Errorf("%s: %w", fs, err)
			}
		}
	}
	return nil
}

type speedRun struct {
	pool    protocol.Pool
	scratch string
	out     *json.Encoder
	fs      string
	round   int
}

func (s *speedRun) dir(fs string) string { return filepath.Join(s.scratch, fs) }

// makeTmpfs copies the image, as the first engine shows it, into the tmpfs
// peers: "tmpfs" as it comes, and "tmpfs-huge" with 2 MiB pages, the big file
// only.
func (s *speedRun) makeTmpfs(engine string) (err error) {
	for fs, options := range map[string]string{"tmpfs": "huge=never,size=90%,nr_inodes=0", "tmpfs-huge": "huge=always,size=90%"} {
		if err := os.MkdirAll(s.dir(fs), 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", s.dir(fs), "tmpfs", 0, options); err != nil {
			return fmt.Errorf("mount tmpfs (%s): %w", options, err)
		}
	}
	if err := mountImage(s.pool, engine, s.dir(engine)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(s.dir(engine), 0)) }()
	for _, fs := range []string{"tmpfs", "tmpfs-huge"} {
		if err := copyFile(filepath.Join(s.dir(engine), protocol.BigFile), filepath.Join(s.dir(fs), protocol.BigFile)); err != nil {
			return err
		}
	}
	for _, n := range protocol.DirSizes {
		d := filepath.Join(s.dir("tmpfs"), protocol.DirName(n))
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		// Links to one file: a million inodes would take a gigabyte.
		file := d + "-file"
		if err := unix.Mknod(file, unix.S_IFREG|0o644, 0); err != nil {
			return fmt.Errorf("make %s: %w", file, err)
		}
		for i := range n {
			if err := unix.Link(file, d+"/"+protocol.EntryName(i)); err != nil {
				return fmt.Errorf("make %s in %s: %w", protocol.EntryName(i), d, err)
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// turn measures all of one file system once.
func (s *speedRun) turn() error {
	groups := []func() error{s.measureReads, s.measureHuge, s.measureRandom, s.measureSmall}
	if s.fs != "tmpfs-huge" { // its directories would be those of tmpfs
		groups = append(groups, s.measureNames)
	}
	for _, measure := range groups {
		// A fresh mount for each: fs/dax remembers in what size a file's pages
		// were mapped first.
		if err := s.mounted(measure); err != nil {
			return err
		}
	}
	return nil
}

func (s *speedRun) mounted(do func() error) (err error) {
	if strings.HasPrefix(s.fs, "tmpfs") {
		return do()
	}
	if err := mountImage(s.pool, s.fs, s.dir(s.fs)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(s.dir(s.fs), 0)) }()
	if strings.HasPrefix(s.fs, "erofs") {
		// Its metadata comes through the device's page cache, DAX or not.
		if err := readAll(pmem); err != nil {
			return err
		}
	}
	return do()
}

func readAll(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, make([]byte, 1<<20))
	return err
}

// measure does something once unmeasured, so that caches are as warm as they
// get, and then again and again for a while; the fastest time is reported, in
// which nothing else had the CPU.
func (s *speedRun) measure(what string, do func() (protocol.Timing, error)) error {
	const (
		enough = 200 * time.Millisecond
		least  = 5
	)
	runtime.GC()
	if _, err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var (
		best  protocol.Timing
		spent int64
	)
	for n := 0; n < least || spent < int64(enough); n++ {
		t, err := do()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if spent += t.Nanos; n == 0 || t.Nanos < best.Nanos {
			best = t
		}
	}
	best.FS, best.What, best.Round = s.fs, what, s.round
	return s.out.Encode(best)
}
