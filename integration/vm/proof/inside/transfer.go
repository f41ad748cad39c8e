package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// transfer measures how fast files come into regions, beside plain copies of
// the same bytes, and prints protocol.Transfer lines. In every round each
// memory has its turn a few times, so that what drifts hits all, and the fastest
// counts, in which nothing else had the CPU. The round before the first, in which
// the memory behind it all becomes warm, is not printed.
func transfer(args []string) error {
	f := flag.NewFlagSet("transfer", flag.ContinueOnError)
	rounds := f.Int("rounds", 7, "how often each memory has its turn")
	scratch := f.String("scratch", "/run/proof-transfer", "`directory` to mount below; the mounts stay")
	turns := f.Int("turns", 3, "of how many turns in a round the fastest counts")
	part := f.Int64("part", 1, "copy and import 1/`N` of each set")
	s := &transferRun{out: json.NewEncoder(os.Stdout)}
	f.Func("region", "`NAME=LOCATION` of a region besides files and memfd, whose contents are lost; any number of them", func(v string) error {
		name, location, ok := strings.Cut(v, "=")
		if !ok {
			return fmt.Errorf("%q: want NAME=LOCATION", v)
		}
		s.regions = append(s.regions, &region{name: name, location: location})
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	err := s.prepare(*scratch, *part)
	for s.round = -1; err == nil && s.round < *rounds; s.round++ {
		fmt.Fprintf(os.Stderr, "transfer: round %d of %d\n", s.round+1, *rounds)
		err = s.oneRound(*turns)
	}
	for _, r := range s.regions {
		err = errors.Join(err, r.close())
	}
	return err
}

type transferRun struct {
	out     *json.Encoder
	sets    []*fileSet
	room    []byte // plain memory that each set fits into, all pages there
	regions []*region
	round   int
	best    []*protocol.Transfer // of this round, in the order of measurement
}

func (s *transferRun) prepare(scratch string, part int64) error {
	for _, d := range protocol.FileSets {
		d.Bytes /= part
		set, err := newFileSet(d)
		if err != nil {
			return err
		}
		s.sets = append(s.sets, set)
	}
	var err error
	if s.room, err = plainMemory(protocol.RegionSize); err != nil {
		return err
	}
	clear(s.room)
	files := []*region{{name: "memfd", location: fmt.Sprintf("memfd:proof,size=%d", protocol.RegionSize)}}
	for _, m := range []struct{ name, fs, options string }{
		{"tmpfs", "tmpfs", "huge=never"},
		{"tmpfs, huge=always", "tmpfs", "huge=always"},
		{"hugetlbfs", "hugetlbfs", fmt.Sprintf("pagesize=2M,min_size=%d", protocol.RegionSize)}, // which takes the pages now
	} {
		dir := filepath.Join(scratch, m.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.fs, dir, m.fs, 0, m.options)
		if m.fs == "hugetlbfs" && errors.Is(err, unix.ENOMEM) {
			fmt.Fprintf(os.Stderr, "transfer: no hugetlbfs: %d huge pages are not free\n", protocol.RegionSize/hugeSize)
			continue
		}
		if err != nil {
			return fmt.Errorf("mount %s (%s): %w", m.fs, m.options, err)
		}
		files = append(files, &region{name: m.name, location: filepath.Join(dir, "pool")})
	}
	s.regions = append(files, s.regions...)
	for _, r := range s.regions {
		if err := r.create(); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func (s *transferRun) oneRound(turns int) error {
	s.best = nil
	for range turns {
		if err := s.turn(); err != nil {
			return err
		}
	}
	if s.round < 0 {
		return nil
	}
	for _, t := range s.best {
		if err := s.out.Encode(t); err != nil {
			return err
		}
	}
	return nil
}

func (s *transferRun) turn() error {
	for _, set := range s.sets {
		if err := s.measurePlain(set); err != nil {
			return err
		}
		for _, r := range s.regions {
			if err := s.measureRegion(r, set); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return nil
}

func (s *transferRun) measurePlain(set *fileSet) error {
	fresh, err := plainMemory(set.space())
	if err != nil {
		return err
	}
	for _, m := range []struct {
		what string
		do   func() error
	}{
		{protocol.Copy, func() error { return set.copyTo(s.room) }},
		{protocol.CopyFresh, func() error { return set.copyTo(fresh) }},
		{protocol.Hash, func() error { return set.hash(nil) }},
		{protocol.HashAndCopy, func() error { return set.hash(s.room) }},
	} {
		if err := s.measure(protocol.PlainMemory, set, m.what, m.do); err != nil {
			return err
		}
	}
	return unix.Munmap(fresh)
}

// measure does something once.
func (s *transferRun) measure(memory string, set *fileSet, what string, do func() error) error {
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		return err
	}
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s, %s files: %w", what, set.name, err)
	}
	took := time.Since(start)
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		return err
	}
	now := &protocol.Transfer{
		Memory: memory, Set: set.name, What: what, Round: s.round, Files: len(set.files), Bytes: set.bytes, Nanos: int64(took),
		CPU:    after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano(),
		Faults: after.Minflt + after.Majflt - before.Minflt - before.Majflt,
	}
	i := slices.IndexFunc(s.best, func(t *protocol.Transfer) bool {
		return t.Memory == memory && t.Set == set.name && t.What == what
	})
	if i < 0 {
		s.best = append(s.best, now)
	} else if now.Nanos < s.best[i].Nanos {
		s.best[i] = now
	}
	return nil
}
