package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/daxfs/containerd-daxfs/integration/report"
	"github.com/daxfs/containerd-daxfs/integration/vm"
	"github.com/daxfs/containerd-daxfs/integration/vm/proof/protocol"
)

// speedMemory is enough for a tmpfs of a million files.
const speedMemory = 3 << 30

// speedFile has the raw numbers: speedRecord lines.
const speedFile = "speed.txt"

// speedRecord is one measurement in one kernel.
type speedRecord struct {
	Kernel string `json:"kernel"`
	protocol.Timing
}

func (b *bench) measureSpeed(ctx context.Context) (err error) {
	raw, err := report.NewRaw(ctx, filepath.Join(b.out, speedFile), b.command(), guestsNote)
	if err != nil {
		return err
	}
	image := filepath.Join(b.work, "speed-image")
	if err := buildSpeedImage(ctx, image); err != nil {
		return err
	}
	pool, closePool, err := newPool(image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closePool()) }()
	if err := os.Remove(image); err != nil {
		return err
	}
	log.Printf("speed: %s", b.kernels[0])
	g, err := b.boot(ctx, b.kernels[0], vm.Machine{
		Memory: speedMemory, Pool: pool, Daxfs: slices.Contains(b.engines, "daxfs"),
	})
	if err != nil {
		return err
	}
	r, err := g.Run(ctx, vm.Command{
		Args: []string{b.inside, "speed",
			"-phys", strconv.FormatInt(g.pool.Phys, 10), "-size", strconv.FormatInt(g.pool.Size, 10),
			"-rounds", strconv.Itoa(b.rounds), "-engines", strings.Join(b.speedEngines(), ",")},
		Stderr: os.Stderr, // its progress
	})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("inside speed: exit status %d", r.Code)
	}
	if cerr := g.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	timings, err := report.DecodeLines[protocol.Timing](r.Stdout)
	if err != nil {
		return fmt.Errorf("what inside speed printed: %w", err)
	}
	for _, t := range timings {
		if err := raw.Add(speedRecord{b.kernels[0], t}); err != nil {
			return err
		}
	}
	return raw.Save()
}

// speedEngines are those that are a file system of their own.
func (b *bench) speedEngines() []string {
	var fs []string
	for _, e := range b.engines {
		if e != "overlayfs" {
			fs = append(fs, e)
		}
	}
	return fs
}
