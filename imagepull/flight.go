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
// among the downloads, if it needs one, so that lower layers get theirs first.
func (p *Puller) startLayer(ctx context.Context, pl *pull, i int, wg *sync.WaitGroup) {
	j, state := p.job(pl, i), pl.layers[i]
	end := func(cached bool, err error) {
		if err != nil {
			p.fail(pl, err)
		}
		j.tell(err, cached)
		state.finish(err)
	}
	chainID := j.layer.ChainID
	f, mine := p.claimFlight(chainID)
	if !mine {
		wg.Go(func() {
			cached, err := p.follow(ctx, j, i, f)
			if err == nil {
				err = pl.below(ctx, i)
			}
			end(cached, err)
		})
		return
	}
	if _, ok := p.store.Layer(chainID); ok {
		p.endFlight(chainID, f)
		wg.Go(func() { end(true, pl.below(ctx, i)) })
		return
	}
	c := p.claimContent(j.layer)
	if c.leads && !p.known(j.layer) && !p.store.Parked(c.key) {
		if err := pl.downloads.acquire(ctx); err != nil {
			p.dropContent(c)
			p.endFlight(chainID, f)
			end(false, err)
			return
		}
		c.place = true
	}
	wg.Go(func() {
		cached, err := p.fly(ctx, j, i, c)
		p.endFlight(chainID, f)
		end(cached, err)
	})
}

// follow waits for a layer that another pull has on its way. If that fails,
// the layer is this pull's own to try.
func (p *Puller) follow(ctx context.Context, j *job, i int, f *flight) (cached bool, err error) {
	chainID := j.layer.ChainID
	for mine := false; !mine; {
		select {
		case <-f.ended:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		f, mine = p.claimFlight(chainID)
	}
	defer p.endFlight(chainID, f)
	if _, ok := p.store.Layer(chainID); ok {
		return true, nil
	}
	return p.fly(ctx, j, i, p.claimContent(j.layer))
}

// fly takes one layer to the store, and reports whether its content was here
// already.
func (p *Puller) fly(ctx context.Context, j *job, i int, c claim) (cached bool, err error) {
	s, c, cached, err := j.obtain(ctx, c)
	if err == nil {
		err = j.fail(StageCommit, j.commit(ctx, i, s, c))
	}
	if err != nil && ctx.Err() != nil {
		return false, context.Cause(ctx) // what ended the pull, not what followed from it
	}
	return cached, err
}

// commit makes a staged layer visible once its parent is, and ends the staging
// and the claim of its content. Until it can be committed, it is parked.
func (j *job) commit(ctx context.Context, i int, s *staged, c claim) (err error) {
	p, unparked := j.p, true
	defer func() {
		p.retire(ctx, c)
		if endErr := j.leave(ctx, s, unparked); err == nil {
			err = endErr
		}
		p.dropContent(c)
	}()
	if !j.pl.ready(i) {
		unparked = false
		j.park(ctx, s)
	}
	if err := j.pl.below(ctx, i); err != nil {
		return err
	}
	// Committing changes what the others copy.
	if err := p.retireInTime(ctx, c); err != nil {
		return err
	}
	unparked = false // and not to be any more
	j.start(StageCommit)
	layer := j.layer
	_, err = s.Commit(ctx, store.LayerMeta{
		ChainID: layer.ChainID, DiffID: layer.DiffID, Parent: layer.Parent, Blob: layer.Digest,
		Size: s.facts.Size, Inodes: s.facts.Inodes, Encrypted: s.encrypted,
	}, s.facts.Implicit)
	if err == nil {
		p.remember(layer, s)
	}
	return err
}
