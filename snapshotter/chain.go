package snapshotter

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/zeebo/blake3"
)

// key names a layer index or an image in the pool.
type key [32]byte

func (k key) String() string { return hex.EncodeToString(k[:]) }

func parseKey(s string) (k key, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("key %q is not %d hexadecimal digits: %w", s, 2*len(k), errdefs.ErrDataLoss)
	}
	return key(b), nil
}

// ErrDamaged is wrapped when the metadata of one snapshot cannot be used. The
// others are not concerned.
var ErrDamaged = fmt.Errorf("damaged snapshot record: %w", errdefs.ErrDataLoss)

// chain are layer indexes, lowest first.
type chain []key

// key is the identity of the image that a chain makes. It comes from the
// layers' content, so that it does not matter what a client calls them, and
// the same chain in two namespaces is one image.
func (c chain) key() key {
	var k key
	for _, layer := range c {
		k = k.with(layer)
	}
	return k
}

// with is the key of an image's chain with one more layer on top.
func (k key) with(layer key) key {
	h := blake3.New()
	_, _ = h.WriteString("daxfs image of a chain\n")
	_, _ = h.Write(k[:])
	_, _ = h.Write(layer[:])
	h.Sum(k[:0])
	return k
}

// layerOf returns the layer index of a committed snapshot.
func layerOf(info snapshots.Info) (key, error) {
	v, ok := info.Labels[LabelLayer]
	if !ok {
		return key{}, fmt.Errorf("snapshot %q has no label %s: %w", info.Name, LabelLayer, ErrDamaged)
	}
	k, err := parseKey(v)
	if err != nil {
		return key{}, fmt.Errorf("snapshot %q: label %s: %w: %w", info.Name, LabelLayer, err, ErrDamaged)
	}
	return k, nil
}

// chainOf returns the layers of a committed snapshot and its parents. It needs
// a transaction. The empty name has the empty chain.
func chainOf(ctx context.Context, name string) (chain, error) {
	var up chain
	for name != "" {
		_, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("parent %q: %w", name, err)
		}
		if info.Kind != snapshots.KindCommitted {
			return nil, fmt.Errorf("parent %q is not committed: %w", name, errdefs.ErrFailedPrecondition)
		}
		k, err := layerOf(info)
		if err != nil {
			return nil, err
		}
		up = append(up, k)
		name = info.Parent
	}
	c := make(chain, 0, len(up))
	for i := len(up) - 1; i >= 0; i-- {
		c = append(c, up[i])
	}
	return c, nil
}
