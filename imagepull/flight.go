// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/store"
)

// flight is one layer on its way to the store, so that two images that have it
// pull it once. ended is closed when it is there or has failed.
type flight struct {
	ended chan struct{}
}

// claimFlight returns the flight of a chain id, and true where the caller is to
// fly it and to end it.
func (p *Puller) claimFlight(chainID digest.Digest) (*flight, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, running := p.flights[chainID]
	if !running {
		f = &flight{ended: make(chan struct{})}
		p.flights[chainID] = f
	}
	return f, !running
}

func (p *Puller) endFlight(chainID digest.Digest, f *flight) {
	p.mu.Lock()
	delete(p.flights, chainID)
	p.mu.Unlock()
	close(f.ended)
}

// startLayer starts layer i of a pull. It returns once the layer has a place
// among the downloads, so that lower layers get theirs first.
func (p *Puller) startLayer(ctx context.Context, pl *pull, i int, wg *sync.WaitGroup) {
	layer, state := pl.image.Layers[i], pl.layers[i]
	end := func(err error) {
		if err != nil {
			p.fail(pl, err)
		} else {
			p.progress(pl.image, layer, StageCommit, layer.Size)
		}
		state.finish(err)
	}
	f, mine := p.claimFlight(layer.ChainID)
	if !mine {
		wg.Go(func() { end(p.follow(ctx, pl, i, f)) })
		return
	}
	if _, ok := p.store.Layer(layer.ChainID); ok {
		p.endFlight(layer.ChainID, f)
		end(nil)
		return
	}
	if p.downloads.Acquire(ctx, 1) != nil {
		p.endFlight(layer.ChainID, f)
		end(context.Cause(ctx))
		return
	}
	wg.Go(func() {
		err := p.fly(ctx, pl, i)
		p.endFlight(layer.ChainID, f)
		end(err)
	})
}

// follow waits for a layer that another pull has on its way. If that fails,
// the layer is this pull's own to try.
func (p *Puller) follow(ctx context.Context, pl *pull, i int, f *flight) error {
	chainID := pl.image.Layers[i].ChainID
	for mine := false; !mine; {
		select {
		case <-f.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		f, mine = p.claimFlight(chainID)
	}
	defer p.endFlight(chainID, f)
	if _, ok := p.store.Layer(chainID); ok {
		return nil
	}
	if p.downloads.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	return p.fly(ctx, pl, i)
}

// fly takes one layer from the registry to the store. It has a download slot
// and gives it back.
func (p *Puller) fly(ctx context.Context, pl *pull, i int) error {
	layer := pl.image.Layers[i]
	s, err := p.stage(ctx, pl.image, layer, sync.OnceFunc(func() { p.downloads.Release(1) }))
	if err == nil {
		err = failAt(StageCommit, layer.Digest, p.commit(ctx, pl, i, s))
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // what ended the pull, not what followed from it
	}
	return err
}

// commit makes a staged layer visible once its parent is, and ends the staging.
func (p *Puller) commit(ctx context.Context, pl *pull, i int, s *staged) (err error) {
	defer func() {
		if discardErr := s.Discard(); err == nil {
			err = discardErr
		}
	}()
	if i > 0 {
		parent := pl.layers[i-1]
		select {
		case <-parent.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if parent.err != nil {
			return parent.err
		}
	}
	layer := pl.image.Layers[i]
	_, err = s.Commit(ctx, store.LayerMeta{
		ChainID: layer.ChainID, DiffID: layer.DiffID, Parent: layer.Parent, Blob: layer.Digest,
		Size: s.facts.Size, Inodes: s.facts.Inodes, Encrypted: s.encrypted,
	}, s.facts.Implicit)
	return err
}
