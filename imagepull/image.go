// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// mounted is a bundle of this puller. err and manifest are set before ready is
// closed.
type mounted struct {
	ready    chan struct{}
	manifest digest.Digest
	err      error
}

// PullImage pulls a whole image and makes a runtime bundle of it: its layers
// mounted at <bundle>/rootfs under a fresh writable layer, and
// <bundle>/config.json. It returns the platform's manifest digest. The layers
// are held in the store until RemoveImage. Asking again for the same image and
// bundle joins a call that runs, or confirms one that has ended; another image
// there is AlreadyExists. On an error nothing is left mounted.
func (p *Puller) PullImage(ctx context.Context, image, bundle string) (digest.Digest, error) {
	if !filepath.IsAbs(bundle) {
		return "", classify(fmt.Errorf("bundle %.200q is not an absolute path: %w", bundle, errdefs.ErrInvalidArgument))
	}
	if p.opts.Scratch == "" {
		return "", classify(fmt.Errorf("no directory for writable layers is configured: set image.work_dir: %w", errdefs.ErrFailedPrecondition))
	}
	key, err := newPullKey(image, "")
	if err != nil {
		return "", err
	}
	var found registry.Image
	if err := p.await(ctx, key, func(i registry.Image) (int, error) {
		found = i
		return len(i.Layers), nil
	}); err != nil {
		return "", err
	}
	if err := p.mount(ctx, found, filepath.Clean(bundle)); err != nil {
		return "", classify(err)
	}
	return found.Manifest, nil
}

// mount makes the bundle, once for all who ask for it.
func (p *Puller) mount(ctx context.Context, image registry.Image, path string) error {
	for {
		p.mu.Lock()
		m, exists := p.bundles[path]
		if !exists {
			m = &mounted{ready: make(chan struct{}), manifest: image.Manifest}
			p.bundles[path] = m
		}
		p.mu.Unlock()
		if !exists {
			m.err = p.create(image, path)
			if m.err != nil {
				p.forget(path)
			}
			close(m.ready)
			return m.err
		}
		select {
		case <-m.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch {
		case m.err != nil: // try it for this caller
		case m.manifest == image.Manifest:
			return nil
		default:
			return fmt.Errorf("bundle %s has image %s: remove it first, or choose another bundle: %w", path, m.manifest, errdefs.ErrAlreadyExists)
		}
	}
}

func (p *Puller) forget(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.bundles, path)
}

// create holds the layers and mounts them.
func (p *Puller) create(image registry.Image, path string) error {
	if len(image.Layers) == 0 {
		return fmt.Errorf("image %s has no layers to mount: %w", image.Reference, errdefs.ErrInvalidArgument)
	}
	heldBefore := slices.Contains(p.store.Holders(), path)
	if err := p.store.Hold(path, image.Layers[len(image.Layers)-1].ChainID); err != nil {
		return err
	}
	dirs := make([]string, len(image.Layers))
	for i, l := range image.Layers {
		layer, _ := p.store.Layer(l.ChainID) // held, so it is there
		dirs[i] = layer.Path
	}
	err := p.bundler.Create(path, dirs, image.Config)
	if err == nil || heldBefore && errdefs.IsAlreadyExists(err) {
		return err // the bundle of an earlier process keeps its hold
	}
	return errors.Join(err, p.store.Release(path))
}

// RemoveImage unmounts a bundle that PullImage made, also in an earlier
// process, and lets its layers go. One that is not there is no error; one in
// use is FailedPrecondition.
func (p *Puller) RemoveImage(_ context.Context, bundle string) error {
	path := filepath.Clean(bundle)
	if err := p.bundler.Remove(path); err != nil {
		return classify(err)
	}
	p.forget(path)
	return classify(p.store.Release(path))
}

// Sweep deletes what bundles of an earlier boot left: their writable layers. Call
// it once, before the first PullImage.
func (p *Puller) Sweep() error {
	if p.opts.Scratch == "" {
		return nil
	}
	return classify(p.bundler.Sweep(p.store.Holders()))
}
