package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// mountSeat attaches to the pool as the holder of what is mounted on dir: such a
// mount has a seat of its own, which stays when this process ends.
func mountSeat(ctx context.Context, cfg *config.Config, dir string) (*daxmem.Reader, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	region, err := daxmem.OpenRegionShared(cfg.Pool.Path)
	if err != nil {
		return nil, err
	}
	return daxmem.Attach(ctx, region, daxmem.Options{Holder: host + ":" + dir})
}

// pinForMount pins an image of the pool for its mount on dir. keep leaves the
// pin in the pool, undo takes it back; one of them is to be called.
func pinForMount(ctx context.Context, cfg *config.Config, rec *daxmem.Record, dir string) (keep, undo func() error, err error) {
	r, err := mountSeat(ctx, cfg, dir)
	if err != nil {
		return nil, nil, err
	}
	now, unpin, err := r.Pin(daxmem.KindImage, rec.Key)
	if err == nil && now.Offset != rec.Offset {
		unpin()
		err = fmt.Errorf("%s was made anew in this moment", rec.Name())
	}
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r.Close, func() error { unpin(); return r.Close() }, nil
}

// unmountWait is how long the kernel may take to let go of an image.
const unmountWait = 2 * time.Second

// unpinMount gives up the seat of what was mounted on dir, if it has one. The
// kernel may still have the image, as long as gone says no: then the pin stays,
// and kept says which seat.
func unpinMount(ctx context.Context, cfg *config.Config, dir string, gone func() bool) (kept *daxmem.Seat, err error) {
	seats, err := poolSeats(ctx, cfg)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, daxmem.ErrNotPool) {
		return nil, nil // the image was not of this pool
	}
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	for _, s := range seats {
		if s.Holder != daxmem.HolderName(host+":"+dir) {
			continue
		}
		for deadline := time.Now().Add(unmountWait); !gone(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				return s, nil
			}
		}
		r, err := mountSeat(ctx, cfg, dir)
		if err != nil {
			return nil, err
		}
		_, err = r.ReleaseLeft()
		return nil, errors.Join(err, r.Close())
	}
	return nil, nil
}
