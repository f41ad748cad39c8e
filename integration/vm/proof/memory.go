package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// guestMemory of each guest is enough for 256 processes and an image in the
// page cache, so that nothing is ever reclaimed.
const guestMemory = 2 << 30

// memoryFile has the raw numbers: memoryRecord and evidenceRecord lines.
const memoryFile = "one-copy.txt"

// memoryRecord is the memory of one kernel while the first Kernels kernels hold
// the image with Containers containers of Processes processes each. Before the
// image was mounted, and when it was but nobody had used it, Processes is 0.
type memoryRecord struct {
	Engine     string           `json:"engine"`
	Kernel     string           `json:"kernel"`
	Kernels    int              `json:"kernels"`
	Containers int              `json:"containers"`
	Processes  int              `json:"processes"`
	Mounted    bool             `json:"mounted"`
	Image      int64            `json:"image"`  // bytes of the image file
	Shared     int64            `json:"shared"` // bytes of memory behind the pool, all kernels together; 0 where the image is on a disk
	Memory     *protocol.Memory `json:"memory"`
}

// evidenceRecord is what processes in all containers of one kernel saw.
type evidenceRecord struct {
	Engine string `json:"engine"`
	evidence
}

type evidence struct {
	EvidenceOf string `json:"evidence_of"` // a kernel
	// Ran counts containers in which a program of the image printed what it should.
	Ran    int               `json:"ran"`
	Frames []protocol.Frames `json:"frames"`
	// One byte, looked at before and after the driver wrote Poked over it.
	Poked  byte            `json:"poked"`
	Before []protocol.Look `json:"before"`
	After  []protocol.Look `json:"after"`
}

// usesPool reports whether an engine maps the pool's memory. To "erofs" the
// pool is as a disk.
func usesPool(engine string) bool { return engine == "daxfs" || engine == "erofs-dax" }

func (b *bench) measureMemory(ctx context.Context) error {
	raw, err := report.NewRaw(ctx, filepath.Join(b.out, memoryFile), b.command(), guestsNote)
	if err != nil {
		return err
	}
	m := &memoryBench{bench: b, raw: raw, image: filepath.Join(b.work, "image"), manifest: filepath.Join(b.work, "manifest")}
	if err := buildRealImage(ctx, m.image); err != nil {
		return err
	}
	if m.poke, m.pokeAt, err = writeManifest(m.image, m.manifest); err != nil {
		return err
	}
	for _, engine := range b.engines {
		log.Printf("memory: %s", engine)
		if err := m.measureEngine(ctx, engine); err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
	}
	return raw.Save()
}

type memoryBench struct {
	*bench
	raw             *report.Raw
	image, manifest string // files
	poke            string // path of a file in the image
	pokeAt          int64  // its address in the pool

	engine    string
	imageSize int64
	pool      string
	guests    []*guest
}

func (m *memoryBench) measureEngine(ctx context.Context, engine string) (err error) {
	m.engine = engine
	st, err := os.Stat(m.image)
	if err != nil {
		return err
	}
	m.imageSize = st.Size()
	defer func() { err = errors.Join(err, m.closeGuests()) }()
	if engine == "overlayfs" {
		err = m.bootOnDisks(ctx)
	} else {
		var closePool func() error
		if m.pool, closePool, err = newPool(m.image); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closePool()) }()
		err = m.bootOnPool(ctx)
	}
	if err != nil {
		return err
	}
	for _, q := range []protocol.Request{
		{Prepare: &protocol.Prepare{Manifest: m.manifest}},
		{Mount: engine},
	} {
		for _, g := range m.guests {
			if q.Prepare != nil {
				q.Prepare.Pool = g.pool
			}
			if _, err := g.ask(ctx, q); err != nil {
				return err
			}
		}
		if err := m.record(ctx, m.guests, memoryRecord{Mounted: q.Mount != ""}); err != nil {
			return err
		}
	}
	for _, containers := range m.containers {
		for _, g := range m.guests {
			if _, err := g.ask(ctx, protocol.Request{Stop: true}); err != nil {
				return err
			}
		}
		for _, processes := range m.processes {
			grow := protocol.Request{Grow: &protocol.Grow{Containers: containers, Processes: processes}}
			for i, g := range m.guests {
				if _, err := g.ask(ctx, grow); err != nil {
					return err
				}
				state := memoryRecord{Mounted: true, Containers: containers, Processes: processes}
				if err := m.record(ctx, m.guests[:i+1], state); err != nil {
					return err
				}
			}
			log.Printf("memory: %s: %d processes in each of %d containers on %d kernels",
				engine, processes, containers, len(m.guests))
		}
	}
	return m.gatherEvidence(ctx)
}

// bootOnDisks boots all kernels, each with a disk of its own that has the
// image's tree on an ext4.
func (m *memoryBench) bootOnDisks(ctx context.Context) error {
	disk := filepath.Join(m.work, "ext4")
	if err := buildExt4(ctx, m.image, m.work, disk); err != nil {
		return err
	}
	return m.bootGuests(ctx, func(kernel string) (vm.Machine, error) {
		own := disk + "-" + kernel
		return vm.Machine{Disk: own}, command(ctx, "cp", "--sparse=always", disk, own)
	})
}

// bootOnPool boots all kernels on the pool.
func (m *memoryBench) bootOnPool(ctx context.Context) error {
	return m.bootGuests(ctx, func(string) (vm.Machine, error) {
		return vm.Machine{Pool: m.pool, Daxfs: m.engine == "daxfs"}, nil
	})
}

func (m *memoryBench) bootGuests(ctx context.Context, machine func(kernel string) (vm.Machine, error)) error {
	m.guests = make([]*guest, len(m.kernels))
	var boots errgroup.Group
	for i, k := range m.kernels {
		boots.Go(func() error {
			mach, err := machine(k)
			if err != nil {
				return err
			}
			mach.Memory = guestMemory
			if m.guests[i], err = m.boot(ctx, k, mach); err != nil {
				return err
			}
			return m.guests[i].startServer(ctx)
		})
	}
	return boots.Wait()
}

func (m *memoryBench) closeGuests() (err error) {
	for _, g := range m.guests {
		if g != nil {
			err = errors.Join(err, g.close())
		}
	}
	return err
}

// record measures guests in a state.
func (m *memoryBench) record(ctx context.Context, guests []*guest, state memoryRecord) error {
	state.Engine, state.Kernels, state.Image = m.engine, len(guests), m.imageSize
	if usesPool(m.engine) {
		var st syscall.Stat_t
		if err := syscall.Stat(m.pool, &st); err != nil {
			return err
		}
		state.Shared = st.Blocks * 512
	}
	for _, g := range guests {
		r, err := g.ask(ctx, protocol.Request{Memory: true})
		if err != nil {
			return err
		}
		state.Kernel, state.Memory = g.kernel, r.Memory
		if err := m.raw.Add(state); err != nil {
			return err
		}
	}
	return nil
}

// gatherEvidence runs programs of the image, looks where its pages are, and
// writes over one byte of it while all hold it.
func (m *memoryBench) gatherEvidence(ctx context.Context) error {
	const into = 5000 // in the second page
	records := make([]evidenceRecord, len(m.guests))
	look := protocol.Request{Look: &protocol.LookAt{Path: m.poke, Offset: into}}
	for i, g := range m.guests {
		r, err := g.ask(ctx, protocol.Request{
			Run:    []string{"/bin/bash", "-c", "exec /usr/bin/perl -e 'print 6 * 7'"},
			Frames: true, Look: look.Look,
		})
		if err != nil {
			return err
		}
		records[i] = evidenceRecord{m.engine, evidence{EvidenceOf: g.kernel, Frames: r.Frames, Before: r.Look}}
		for _, out := range r.Output {
			if out == "42" {
				records[i].Ran++
			}
		}
	}
	poked := records[0].Before[0].Read ^ 0xff
	if usesPool(m.engine) {
		pool, err := os.OpenFile(m.pool, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer pool.Close()
		if _, err := pool.WriteAt([]byte{poked}, m.pokeAt+into); err != nil {
			return err
		}
	}
	for i, g := range m.guests {
		r, err := g.ask(ctx, look)
		if err != nil {
			return err
		}
		records[i].Poked, records[i].After = poked, r.Look
		if err := m.raw.Add(records[i]); err != nil {
			return err
		}
	}
	return nil
}
