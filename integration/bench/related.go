package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path/filepath"
	"slices"
	"time"

	"github.com/daxfs/containerd-daxfs/integration/lab"
	"github.com/daxfs/containerd-daxfs/integration/report"
)

// relatedSample is the state after some related images were pulled.
type relatedSample struct {
	Peer   string        `json:"peer"`
	Images int           `json:"images"`
	Bytes  int64         `json:"bytes"` // allocated to the snapshots' directories, or to the pool's file
	Took   time.Duration `json:"took"`  // the pulls so far, until a container's root file system was mounted
}

// measureRelated pulls the related images one after the other and keeps them. It
// is done once: the bytes are the same each time. Pools in a file and in memory
// hold the same.
func (b *bench) measureRelated(ctx context.Context, raw *report.Raw) error {
	for _, p := range peersNamed(reference, lab.Erofs, ours) {
		if !slices.Contains(b.peers, p.name) || b.missing[p.snapshotter] != "" {
			continue
		}
		if err := b.pullRelated(ctx, p, raw); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (b *bench) pullRelated(ctx context.Context, p peer, raw *report.Raw) error {
	l := b.lab(p, modes[1])
	nctx := namespace(ctx, l, "bench")
	s := relatedSample{Peer: p.name}
	for _, image := range b.related {
		layout, err := b.layout(image)
		if err != nil {
			return err
		}
		l.Registry.Add(image, layout.Dir)
		leased, release, err := l.Client().WithLease(nctx)
		if err != nil {
			return err
		}
		start := time.Now()
		img, err := l.Pull(nctx, image, p.snapshotter, lab.Transfer)
		if err != nil {
			return err
		}
		remove, err := prepareContainer(leased, l, img, p.snapshotter)
		if err != nil {
			return err
		}
		s.Took += time.Since(start)
		if err := errors.Join(remove(), release(nctx)); err != nil {
			return err
		}
		l.Collect() // of the container's directories
		s.Images++
		if s.Bytes = l.DiskBytes(filepath.Join(l.SnapshotsDir(p.snapshotter), "snapshots")); p.snapshotter == lab.Daxfs {
			s.Bytes = l.PoolBytes()
		}
		if err := raw.Add(s); err != nil {
			return err
		}
	}
	log.Printf("%d related images: %s takes %d MB", s.Images, p.name, s.Bytes/1e6)
	for _, image := range b.related {
		l.RemoveImage(nctx, image)
	}
	return b.forget(nctx, l, p, b.related[0])
}
