// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// pullKey names an image so that equal pulls are one: the name that the caller
// gave, and the manifest digest, if one is known. name is its canonical
// spelling, for people; given is as the caller spelled it, for the registry,
// which may know a short name by another rule.
type pullKey struct {
	name, given string
	manifest    digest.Digest
}

func newPullKey(image string, manifest digest.Digest) (pullKey, error) {
	ref, err := registry.ParseReference(image)
	if err != nil {
		return pullKey{}, classify(err)
	}
	name := ref.String()
	if manifest == "" {
		manifest = ref.Digest
	}
	if manifest != "" {
		if err := manifest.Validate(); err != nil {
			return pullKey{}, classify(fmt.Errorf("manifest digest %.80q: %w: %w", manifest, err, errdefs.ErrInvalidArgument))
		}
	}
	return pullKey{name: name, given: image, manifest: manifest}, nil
}

// pull is the one running pull of an image, shared by all who want it.
type pull struct {
	key    pullKey
	cancel context.CancelCauseFunc

	waiters int   // guarded by Puller.mu
	ending  bool  // failed, abandoned or complete: not to be joined; guarded by Puller.mu
	err     error // the first failure; guarded by Puller.mu

	resolved chan struct{} // closed when image and layers are set, or the pull has failed
	image    registry.Image
	layers   []*layerState
	ended    chan struct{} // closed when all its goroutines have ended

	downloads, unpacks *share
}

// layerState is the outcome of one layer and all below it; err is set before done
// is closed.
type layerState struct {
	done chan struct{}
	err  error
}

// below waits until all layers below layer i are in the store. A layer may be
// there while one that it stands on has been removed.
func (pl *pull) below(ctx context.Context, i int) error {
	if i == 0 {
		return nil
	}
	parent := pl.layers[i-1] // which has waited likewise
	select {
	case <-parent.done:
		return parent.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready reports whether below would return at once.
func (pl *pull) ready(i int) bool {
	if i == 0 {
		return true
	}
	select {
	case <-pl.layers[i-1].done:
		return true
	default:
		return false
	}
}

func (s *layerState) finish(err error) {
	s.err = err
	close(s.done)
}

// await joins the pull of an image, starting it if need be, and returns once
// the lowest n layers are in the store, where n is want's answer.
func (p *Puller) await(ctx context.Context, key pullKey, want func(registry.Image) (n int, err error)) error {
	pl, err := p.join(ctx, key)
	if err != nil {
		return err
	}
	err = p.waitFor(ctx, pl, want)
	p.leave(pl, err == nil)
	return err
}

func (p *Puller) waitFor(ctx context.Context, pl *pull, want func(registry.Image) (int, error)) error {
	wait := func(c <-chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := wait(pl.resolved); err != nil {
		return err
	}
	if pl.layers == nil {
		return p.failure(pl)
	}
	n, err := want(pl.image)
	if err != nil {
		return err
	}
	for _, state := range pl.layers[:n] {
		if err := wait(state.done); err != nil {
			return err
		}
		if state.err != nil {
			// The caller may try again at once: nothing of this pull is left.
			if err := wait(pl.ended); err != nil {
				return err
			}
			return p.failure(pl)
		}
	}
	return nil
}

// join returns the running pull of key, or starts one.
func (p *Puller) join(ctx context.Context, key pullKey) (*pull, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		pl, running := p.pulls[key]
		if !running {
			pl = p.start(ctx, key)
		}
		if !pl.ending {
			pl.waiters++
			p.mu.Unlock()
			return pl, nil
		}
		p.mu.Unlock()
		select {
		case <-pl.ended:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// start begins a pull. The caller holds mu.
func (p *Puller) start(ctx context.Context, key pullKey) *pull {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	pl := &pull{
		key: key, cancel: cancel, resolved: make(chan struct{}), ended: make(chan struct{}),
		downloads: p.downloads.share(), unpacks: p.unpacks.share(),
	}
	p.pulls[key] = pl
	go func() {
		p.run(ctx, pl)
		p.mu.Lock()
		delete(p.pulls, key)
		p.mu.Unlock()
		cancel(nil)
		close(pl.ended)
	}()
	return pl
}

// leave ends one caller's interest. If it was the last and did not get what it
// asked for, the pull is ended, and waited for.
func (p *Puller) leave(pl *pull, served bool) {
	p.mu.Lock()
	pl.waiters--
	abandoned := pl.waiters == 0 && !served
	switch {
	case abandoned:
		pl.fail(errAbandoned) // under the same lock: nobody may join in between
	case served && pl.complete():
		pl.ending = true // the next call is a pull of its own, with a verdict of its own
	}
	p.mu.Unlock()
	if abandoned {
		<-pl.ended
	}
}

// complete reports whether all layers have ended. To be called by one who has
// seen that the image is resolved.
func (pl *pull) complete() bool {
	for _, state := range pl.layers {
		select {
		case <-state.done:
		default:
			return false
		}
	}
	return true
}

// fail ends a pull.
func (p *Puller) fail(pl *pull, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl.fail(err)
}

// fail ends the pull; the first error is the one its callers see. The caller
// holds Puller.mu.
func (pl *pull) fail(err error) {
	if pl.err == nil {
		pl.err = err
	}
	pl.ending = true
	pl.cancel(err)
}

func (p *Puller) failure(pl *pull) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pl.err
}

// run resolves the image, asks the policy, and takes all layers to the store.
func (p *Puller) run(ctx context.Context, pl *pull) {
	began, event := time.Now(), Event{Image: pl.key.name, Stage: StagePull, State: progress.Start}
	p.emit(event)
	lease := p.store.Lease()
	defer lease.End()
	err := p.admit(ctx, pl, lease)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		p.fail(pl, err)
		close(pl.resolved)
	} else {
		p.runLayers(ctx, pl)
		err = p.failure(pl)
	}
	event.State, event.Err, event.Manifest, event.Took = progress.End, err, pl.image.Manifest, time.Since(began)
	log := p.opts.Logger.With("image", pl.key.name, "manifest", pl.image.Manifest, "stage", StagePull, "layers", len(pl.layers), "seconds", event.Took.Seconds())
	if err != nil {
		log.WarnContext(ctx, "pull ended", "err", err)
	} else {
		p.record(ctx, pl.image)
		log.InfoContext(ctx, "pulled")
	}
	p.emit(event)
}

// runLayers takes all layers to the store.
func (p *Puller) runLayers(ctx context.Context, pl *pull) {
	pl.layers = make([]*layerState, len(pl.image.Layers))
	for i := range pl.layers {
		pl.layers[i] = &layerState{done: make(chan struct{})}
	}
	close(pl.resolved)
	var wg sync.WaitGroup
	for i := range pl.layers {
		p.startLayer(ctx, pl, i, &wg)
	}
	wg.Wait()
}
