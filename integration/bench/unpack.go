package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/daxfs/containerd-daxfs/integration/report"
)

// unpackSample is one unpack of an image that containerd has fetched already, by
// the client, one layer after the other.
type unpackSample struct {
	cell
	Round int `json:"round"`
	sizes
	Took time.Duration `json:"took"`
	usage
	// Disk is what came to the disk in that time and in the sync after it, by
	// whomever; -1 where no disk is behind the directory.
	Disk int64 `json:"disk"`
	// Snapshots is what the snapshotter's directory takes on the disk afterwards.
	// A pool in memory is not in it.
	Snapshots int64 `json:"snapshots"`
}

func (b *bench) measureUnpack(ctx context.Context, raw *report.Raw) error {
	for round := range b.rounds {
		for _, image := range b.unpacked {
			sizes, err := b.sizes(image)
			if err != nil {
				return err
			}
			for _, p := range rotate(peersNamed(reference, ours), round) {
				if image == zstdImage && p.name == reference {
					continue // to save time
				}
				s := unpackSample{cell: cell{Image: image, Mode: modes[0].name, Cache: warm, Peer: p.name}, Round: round, sizes: sizes}
				if err := b.unpack(ctx, p, &s); err != nil {
					return fmt.Errorf("unpack %s with %s: %w", image, p.name, err)
				}
				log.Printf("unpack %s: %s in %.2f s", image, p.name, s.Took.Seconds())
				if err := raw.Add(s); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// fetch gets an image's blobs into containerd's content store, and no more.
func (b *bench) fetch(ctx context.Context, p peer, image string) (client.Image, error) {
	l := b.lab(p, modes[0])
	layout, err := b.layout(image)
	if err != nil {
		return nil, err
	}
	l.Registry.Add(image, layout.Dir)
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	i, err := l.Client().Fetch(ctx, l.Ref(image), client.WithResolver(resolver))
	if err != nil {
		return nil, err
	}
	return client.NewImage(l.Client(), i), nil
}

func (b *bench) unpack(ctx context.Context, p peer, s *unpackSample) error {
	l := b.lab(p, modes[0])
	nctx := namespace(ctx, l, "bench")
	img, err := b.fetch(nctx, p, s.Image)
	if err != nil {
		return err
	}
	settle()
	disk, err := diskWritten(l.Dir)
	if err != nil {
		return err
	}
	meter, err := begin(l.Daemons())
	if err != nil {
		return err
	}
	start := time.Now()
	err = img.Unpack(nctx, p.snapshotter)
	s.Took = time.Since(start)
	if err != nil {
		return err
	}
	if s.usage, err = meter.end(); err != nil {
		return err
	}
	settle()
	if s.Disk = -1; disk >= 0 {
		after, err := diskWritten(l.Dir)
		if err != nil {
			return err
		}
		s.Disk = after - disk
	}
	s.Snapshots = l.DiskBytes(l.SnapshotsDir(p.snapshotter))
	return b.forget(nctx, l, p, s.Image)
}
