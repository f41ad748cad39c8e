package snapshotter

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/daxfs/containerd-daxfs/daxmem"
)

// Missing says what to do about what another kernel's pool does not have.
type Missing string

const (
	// MissingAsk: its owner is asked, and MissingLocal if that fails.
	MissingAsk Missing = "ask"
	// MissingLocal: it is unpacked into this kernel's own pool.
	MissingLocal Missing = "local"
	// MissingFail: it is an error.
	MissingFail Missing = "fail"
)

var (
	errNotShared = fmt.Errorf("there is no pool of another kernel: %w", errdefs.ErrNotFound)
	errNotAsked  = fmt.Errorf("the owner of the pool is not asked: %w", errdefs.ErrNotFound)
)

// labelImage is the image's name on snapshots that CRI's pulls prepare
// (containerd's pkg/snapshotters).
const labelImage = "containerd.io/snapshot/cri.image-ref"

// asker asks the owner of another kernel's pool.
type asker struct {
	reader  *daxmem.Reader
	missing Missing
	wait    time.Duration
	imageOf func(ctx context.Context, chainID digest.Digest) (string, error) // or nil
}

// flatten asks for the image of the chain of a committed snapshot.
func (a asker) flatten(ctx context.Context, name string) error {
	id, ok := chainID(name)
	if !ok {
		return fmt.Errorf("snapshot %q is no layer of an image: %w", name, errNotAsked)
	}
	return a.send(ctx, &daxmem.Request{Kind: daxmem.AskFlatten, Chain: id})
}

func (a asker) convert(ctx context.Context, id [32]byte, labels map[string]string) error {
	if a.missing != MissingAsk {
		return errNotAsked
	}
	name := labels[labelImage]
	if name == "" && a.imageOf != nil {
		var err error
		if name, err = a.imageOf(ctx, digest.NewDigestFromBytes(digest.SHA256, id[:])); err != nil {
			return fmt.Errorf("the image's name is not known: %w: %w", err, errNotAsked)
		}
	}
	if name == "" {
		return fmt.Errorf("the image's name is not known (label %s): %w", labelImage, errNotAsked)
	}
	return a.send(ctx, &daxmem.Request{Kind: daxmem.AskConvert, Chain: id, Name: name})
}

func (a asker) send(ctx context.Context, q *daxmem.Request) error {
	if a.missing != MissingAsk {
		return errNotAsked
	}
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	start := time.Now()
	err := a.reader.Ask(ctx, q)
	l := log.G(ctx).WithField("request", q.Kind.String()).WithField("chain", hex.EncodeToString(q.Chain[:])).
		WithField("image", q.Name).WithField("took", time.Since(start))
	if err != nil {
		l.WithError(err).Warn("owner of the pool was asked in vain")
		return err
	}
	l.Info("owner of the pool was asked")
	return nil
}
