// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

func keyOf(l registry.Layer) store.Content {
	return store.Content{Blob: l.Digest, DiffID: l.DiffID}
}

// content is a blob on its way: the first layer that wants it, of whatever
// image, fetches it, and layers that want it meanwhile copy the verified tree
// before it is committed. (Committing fits it to the layers below.)
//
// A layer waits for no commit, so that two images with the same layers in
// another order do not wait for each other.
type content struct {
	staged chan struct{} // closed when tree is set, or there will be none
	gone   chan struct{} // closed when the one who fetched it has committed, or failed

	// Guarded by Puller.mu:
	tree    *staged       // verified, to be copied; nil before, after and on a failure
	closed  bool          // no more layers may join
	joined  int           // layers that wait for the tree or copy it
	copying int           // those that copy it
	changed chan struct{} // closed and made anew when one of these has gone down
}

// claim is the interest of one layer in a content.
type claim struct {
	key     store.Content
	content *content
	leads   bool // it is to fetch the content
	joined  bool // it is to copy it
	place   bool // it has a place among the downloads
}

// claimContent makes a layer the one that fetches its content, or one of those
// that copy it, or one that has come too late for that.
func (p *Puller) claimContent(l registry.Layer) claim {
	key := keyOf(l)
	p.mu.Lock()
	defer p.mu.Unlock()
	c, running := p.contents[key]
	if !running {
		c = &content{staged: make(chan struct{}), gone: make(chan struct{}), changed: make(chan struct{})}
		p.contents[key] = c
		return claim{key: key, content: c, leads: true}
	}
	if !c.closed {
		c.joined++
	}
	return claim{key: key, content: c, joined: !c.closed}
}

// offer gives the tree to those who wait for it.
func (p *Puller) offer(c claim, tree *staged) {
	p.mu.Lock()
	c.content.tree = tree
	p.mu.Unlock()
	close(c.content.staged)
}

// dropContent ends the claim of the one who fetched. Those who still wait look
// for another way. It does nothing for any other claim.
func (p *Puller) dropContent(c claim) {
	if !c.leads {
		return
	}
	p.mu.Lock()
	delete(p.contents, c.key)
	offered := c.content.tree != nil
	c.content.tree, c.content.closed = nil, true
	p.mu.Unlock()
	if !offered {
		close(c.content.staged)
	}
	close(c.content.gone)
}

// retireInTime waits until all who joined have their copies, and then lets
// nobody else take one.
func (p *Puller) retireInTime(ctx context.Context, c claim) error {
	return p.closeContent(ctx, c, func() bool { return c.content.joined == 0 })
}

// retire lets nobody take a copy any more and waits for those that are being
// made: a tree must not go away under them.
func (p *Puller) retire(ctx context.Context, c claim) {
	if !c.leads {
		return
	}
	p.mu.Lock()
	c.content.closed = true
	p.mu.Unlock()
	_ = p.closeContent(context.WithoutCancel(ctx), c, func() bool { return c.content.copying == 0 }) // no end of ctx, no error
}

func (p *Puller) closeContent(ctx context.Context, c claim, free func() bool) error {
	if !c.leads {
		return nil
	}
	for {
		p.mu.Lock()
		if free() {
			c.content.closed = true
			p.mu.Unlock()
			return nil
		}
		changed := c.content.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// borrow returns the tree of a content for as long as part is not called, nil
// if there is none.
func (p *Puller) borrow(c claim) *staged {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.content.tree == nil || c.content.closed {
		return nil
	}
	c.content.copying++
	return c.content.tree
}

// part ends the claim of one who joined.
func (p *Puller) part(c claim, borrowed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.content.joined--
	if borrowed {
		c.content.copying--
	}
	close(c.content.changed)
	c.content.changed = make(chan struct{})
}

// obtain gets the content of the layer into a staging directory of its own:
// parked there, copied from a layer that has it or is about to, else from the
// registry. The
// claim that it returns is for commit. On an error nothing is left.
func (j *job) obtain(ctx context.Context, c claim) (s *staged, _ claim, cached bool, err error) {
	p := j.p
	for {
		switch {
		case c.leads:
			s, cached, err := j.lead(ctx, &c)
			if err != nil {
				p.dropContent(c)
				return nil, claim{}, false, err
			}
			p.offer(c, s)
			return s, c, cached, nil
		case c.joined:
			s, err := j.join(ctx, c)
			if s != nil || err != nil {
				return s, claim{}, true, err
			}
		}
		// Either it failed, or it is being committed.
		select {
		case <-c.content.gone:
		case <-ctx.Done():
			return nil, claim{}, false, context.Cause(ctx)
		}
		c = p.claimContent(j.layer)
	}
}

// lead takes the content from where it is parked, copies it from a layer of the
// store, or fetches it.
func (j *job) lead(ctx context.Context, c *claim) (s *staged, cached bool, err error) {
	if !c.place {
		if s := j.takeParked(); s != nil {
			return s, true, nil
		}
		if s, err := j.reuse(ctx); s != nil || err != nil {
			return s, s != nil, err
		}
		if err := j.pl.downloads.acquire(ctx); err != nil {
			return nil, false, err
		}
	}
	c.place = false
	for {
		s, err = j.stage(ctx, onceReleased(j.pl.downloads))
		if !j.elsewhere(ctx, err) {
			return s, false, err
		}
		if err := j.pl.downloads.acquire(ctx); err != nil {
			return nil, false, err
		}
	}
}

// elsewhere reports whether the blob failed for wrong bytes and another place
// has it: a mirror, or the registry behind it. Each place is asked once.
func (j *job) elsewhere(ctx context.Context, err error) bool {
	e := layerError(err)
	if e == nil || ctx.Err() != nil {
		return false
	}
	var wrong forged
	if !errors.As(err, &wrong) && (e.Stage != StageFetch || !errdefs.IsDataLoss(err)) {
		return false
	}
	places, ok := j.p.registry.(interface {
		Reject(ref string, blob digest.Digest) bool
	})
	if !ok || !places.Reject(j.pl.image.Reference, j.layer.Digest) {
		return false
	}
	j.log().WarnContext(ctx, "wrong bytes, the layer is pulled from elsewhere", "stage", e.Stage, "err", err)
	j.startOver(err)
	return true
}

// join copies the content that another layer fetches. Without an error and a
// result there is none to be copied.
func (j *job) join(ctx context.Context, c claim) (s *staged, err error) {
	borrowed := false
	defer func() { j.p.part(c, borrowed) }()
	select {
	case <-c.content.staged:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := j.pl.unpacks.acquire(ctx); err != nil {
		return nil, err
	}
	defer j.pl.unpacks.release()
	tree := j.p.borrow(c)
	if tree == nil {
		return nil, nil
	}
	borrowed = true
	return j.copyOf(ctx, original{path: tree.Dir, facts: tree.facts, encrypted: tree.encrypted})
}

// passing reports whether a copy that failed is worth a download instead.
func passing(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errdefs.IsResourceExhausted(err) && !errors.Is(err, context.Canceled)
}
