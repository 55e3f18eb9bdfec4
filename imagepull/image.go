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

// mounted is a bundle that is being made or removed. ready is closed when that
// has ended, well or not: what became of it is seen at the bundle itself.
type mounted struct {
	ready chan struct{}
}

// PullImage pulls a whole image and makes a runtime bundle of it: its layers
// mounted at <bundle>/rootfs under a fresh writable layer, and
// <bundle>/config.json. It returns the platform's manifest digest. The layers
// are held in the store until RemoveImage. Asking again for the same image and
// bundle joins a call that runs, or confirms one that has ended, in an earlier
// process too; another image there is AlreadyExists. On an error nothing is left
// mounted.
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
	if err := p.reap(); err != nil {
		p.opts.Logger.WarnContext(ctx, "layers of bundles that are gone stay", "err", err)
	}
	lease := p.store.Lease() // until the layers are held
	defer lease.End()
	found, err := p.pullAll(ctx, key)
	if err != nil {
		return "", err
	}
	if err := p.mount(ctx, image, found, filepath.Clean(bundle)); err != nil {
		return "", classify(err)
	}
	return found.Manifest, nil
}

// take lets one caller at a time work at a bundle; it ends that with give. Where
// another does, it returns nil and that other's.
func (p *Puller) take(path string) (mine, others *mounted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m, taken := p.bundles[path]; taken {
		return nil, m
	}
	m := &mounted{ready: make(chan struct{})}
	p.bundles[path] = m
	return m, nil
}

// await waits for the turn at a bundle.
func (p *Puller) awaitBundle(ctx context.Context, path string) (*mounted, error) {
	for {
		mine, others := p.take(path)
		if mine != nil {
			return mine, nil
		}
		select {
		case <-others.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *Puller) give(path string, m *mounted) {
	p.mu.Lock()
	delete(p.bundles, path)
	p.mu.Unlock()
	close(m.ready)
}

// mount makes the bundle, or finds that it is made. The store has all layers.
func (p *Puller) mount(ctx context.Context, name string, image registry.Image, path string) error {
	if len(image.Layers) == 0 {
		return fmt.Errorf("image %s has no layers to mount: %w", image.Reference, errdefs.ErrInvalidArgument)
	}
	turn, err := p.awaitBundle(ctx, path)
	if err != nil {
		return err
	}
	defer p.give(path, turn)
	top := image.Layers[len(image.Layers)-1].ChainID
	switch manifest, err := p.bundler.Complete(path); {
	case err == nil && manifest == image.Manifest:
		return p.store.Hold(path, top) // it is held already, if nobody took the store away
	case err == nil:
		return fmt.Errorf("bundle %s has image %s: remove it first, or choose another bundle: %w", path, manifest, errdefs.ErrAlreadyExists)
	case !errdefs.IsNotFound(err):
		return err
	}
	if p.holds(path) { // of a process that was killed, or it was unmounted behind our back
		if err := p.remove(path); err != nil {
			return err
		}
	}
	if err := p.bundler.Vacant(path); err != nil {
		return err
	}
	if err := p.store.Hold(path, top); err != nil {
		return err
	}
	err = p.create(ctx, name, image, path)
	if err == nil {
		return nil
	}
	if _, mounted := p.bundler.Mounted(path); !errdefs.IsNotFound(mounted) {
		return errors.Join(err, mounted) // what is mounted stays held
	}
	return errors.Join(err, p.store.Release(path))
}

// create measures the pull and mounts the layers, which are held.
func (p *Puller) create(ctx context.Context, name string, image registry.Image, path string) error {
	dirs := make([]string, len(image.Layers))
	for i, l := range image.Layers {
		layer, found := p.store.Layer(l.ChainID)
		if !found {
			return fmt.Errorf("layer %s is no longer in the store: pull the image again: %w", l.ChainID, errdefs.ErrUnavailable)
		}
		dirs[i] = layer.Path
	}
	if err := p.measure(ctx, name, image); err != nil {
		return err
	}
	return p.bundler.Create(path, image.Manifest, dirs, image.Config, toldAccounts(image))
}

// RemoveImage unmounts a bundle that PullImage made, also in an earlier
// process, and lets its layers go. One that is not there is no error; one in
// use is FailedPrecondition, and stays.
func (p *Puller) RemoveImage(ctx context.Context, bundle string) error {
	path := filepath.Clean(bundle)
	turn, err := p.awaitBundle(ctx, path)
	if err != nil {
		return classify(err)
	}
	defer p.give(path, turn)
	if !p.holds(path) {
		// Nothing here is ours, unless the store was taken away.
		if _, err := p.bundler.Mounted(path); errdefs.IsNotFound(err) {
			return nil
		}
	}
	return classify(p.remove(path))
}

// remove undoes mount, however far that came. The caller has the turn.
func (p *Puller) remove(path string) error {
	if err := p.bundler.Remove(path); err != nil {
		return err
	}
	return p.store.Release(path)
}

func (p *Puller) holds(path string) bool { return slices.Contains(p.store.Holders(), path) }

// reap lets go of the layers of bundles that are no longer mounted: their
// process was killed, or somebody else unmounted them.
func (p *Puller) reap() (failed error) {
	for _, path := range p.store.Holders() {
		failed = errors.Join(failed, p.reapOne(path))
	}
	return failed
}

func (p *Puller) reapOne(path string) error {
	turn, _ := p.take(path)
	if turn == nil {
		return nil // it is being made or removed
	}
	defer p.give(path, turn)
	_, err := p.bundler.Mounted(path)
	if !errdefs.IsNotFound(err) || !p.holds(path) {
		return err
	}
	return p.remove(path)
}

// Sweep deletes what bundles of killed processes and of an earlier boot left:
// their layers' holds and their writable layers. Call it once, before the first
// PullImage.
func (p *Puller) Sweep() error {
	if p.opts.Scratch == "" {
		return nil
	}
	err := p.reap()
	return classify(errors.Join(err, p.bundler.Sweep(p.store.Holders())))
}
