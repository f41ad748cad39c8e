package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// answerGrace is how long an image that another kernel has asked for stays, so
// that it can be pinned there.
const answerGrace = time.Minute

// Answer does what another kernel asks of this one, the owner of the pool, for
// daxmem.Pool.Serve.
func (s *Snapshotter) Answer(ctx context.Context, q *daxmem.Request) error {
	l := log.G(ctx).WithField("seat", q.Seat.String()).WithField("request", q.Kind.String()).WithField("image", q.Name)
	err := s.answer(ctx, q)
	if err != nil {
		l.WithError(err).Warn("request of another kernel failed")
		return err
	}
	l.Info("request of another kernel answered")
	return nil
}

func (s *Snapshotter) answer(ctx context.Context, q *daxmem.Request) error {
	switch q.Kind {
	case daxmem.AskFlatten:
		return s.answerFlatten(ctx, q.Chain)
	case daxmem.AskConvert:
		// What this kernel has a snapshot of, a pull here would not unpack again.
		err := s.bringChain(ctx, q.Chain)
		if err == nil || !errdefs.IsNotFound(err) && !errors.Is(err, ErrLayerLost) {
			return err
		}
		if s.convert == nil {
			return fmt.Errorf("this kernel pulls no images for others: %w", errdefs.ErrNotImplemented)
		}
		if err := s.convert(ctx, q.Name); err != nil {
			return err
		}
		if _, err := s.pool.Chain(q.Chain); err != nil {
			return fmt.Errorf("image %q has another chain: %w", q.Name, err)
		}
		return nil
	}
	return fmt.Errorf("%v: %w", q.Kind, errdefs.ErrNotImplemented)
}

// answerFlatten publishes the image of a chain that the catalog has.
func (s *Snapshotter) answerFlatten(ctx context.Context, id [32]byte) error {
	s.collecting.RLock()
	defer s.released(ctx)
	var up []key
	for below := id; below != [32]byte{}; {
		rec, err := s.pool.Chain(below)
		if err != nil {
			return err
		}
		up = append(up, rec.Digest)
		below = rec.Below
		if len(up) > maxChain {
			return fmt.Errorf("chain of more than %d layers: %w", maxChain, ErrDamaged)
		}
	}
	c := make(chain, 0, len(up))
	for i := len(up) - 1; i >= 0; i-- {
		c = append(c, up[i])
	}
	_, unpin, err := s.pool.Pin(daxmem.KindImage, c.key())
	if errdefs.IsNotFound(err) {
		_, unpin, err = s.images.flatten(ctx, c)
	}
	if err != nil {
		return err
	}
	s.background.Go(func() {
		select {
		case <-time.After(answerGrace):
		case <-s.running.Done():
		}
		unpin()
	})
	return nil
}

// maxChain bounds the layers of an image. overlayfs takes 500, registries 127.
const maxChain = 1024
