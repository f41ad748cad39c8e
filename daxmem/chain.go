package daxmem

import (
	"context"
	"fmt"
	"time"
)

// PublishChain says that the layer with that key is on top of a chain of layers
// by the name of its chainID, and parent that of the chain below, zero for none.
// The layer stays as long as the chain does. A chain that is there already stays
// as it is, if it says the same; else it is ErrInvalid.
func (p *Pool) PublishChain(ctx context.Context, chainID, layer, parent [32]byte) (*Record, error) {
	if err := p.beginWrite(); err != nil {
		return nil, err
	}
	defer p.end()
	rec, err := p.publishChain(ctx, chainID, layer, parent)
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", recordName(KindChain, chainID), err)
	}
	return rec, p.published(ctx, rec)
}

func (p *Pool) publishChain(ctx context.Context, chainID, layer, parent [32]byte) (*Record, error) {
	if err := p.mayWrite(); err != nil {
		return nil, err
	}
	slot, err := p.takeSlot(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rec, used, err := p.publishChainLocked(slot, chainID, layer, parent)
	if !used {
		p.avail = append(p.avail, slot)
	}
	return rec, err
}

func (p *Pool) publishChainLocked(slot int, chainID, layer, parent [32]byte) (rec *Record, used bool, err error) {
	if there := p.live[recordKey{KindChain, chainID}]; there != nil {
		if there.digest != layer || there.below != parent {
			return nil, false, invalidf("it is there with layer %x on chain %x, not layer %x on chain %x",
				there.digest[:8], there.below[:8], layer[:8], parent[:8])
		}
		return there.public(), false, nil
	}
	l := p.live[recordKey{KindLayer, layer}]
	if l == nil {
		return nil, false, fmt.Errorf("%s: %w", recordName(KindLayer, layer), ErrNotFound)
	}
	r := &record{slot: slot, layers: []*record{l}}
	r.entry = entry{
		word: makeWord(stateWriting, KindChain, p.words[slot].generation()+1, p.ow.fence()),
		key:  chainID, digest: layer, below: parent, created: time.Now().UnixNano(), seq: p.seq + 1,
	}
	if err := p.store(r); err != nil {
		return nil, false, err
	}
	l.users++
	p.enter(r)
	p.pending[r] = struct{}{}
	return r.public(), true, nil
}

// Chain returns the chain with that chainID, or ErrNotFound. Its Digest is the
// key of the layer on top, its Below the chainID of the chain below.
func (p *Pool) Chain(id [32]byte) (*Record, error) { return p.find(KindChain, id) }
