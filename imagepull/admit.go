// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"strings"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// admit does what comes before the first byte of a layer.
func (p *Puller) admit(ctx context.Context, pl *pull, lease *store.Lease) error {
	if err := p.resolve(ctx, pl); err != nil {
		return failAt(StageResolve, pl.key.name, "", err)
	}
	if err := p.askPolicy(ctx, pl); err != nil {
		return failAt(StagePolicy, pl.key.name, "", err)
	}
	if err := lease.Reserve(ctx, p.demand(pl.image)); err != nil {
		return failAt(StageResolve, pl.key.name, "", err)
	}
	p.rememberAdmission(pl)
	return nil
}

// resolve finds the image in the registry.
func (p *Puller) resolve(ctx context.Context, pl *pull) (err error) {
	event := Event{Image: pl.key.name, Stage: StageResolve}
	end := p.span(event)
	defer func() { end(err) }()
	return p.retries(event).do(ctx, func() error {
		image, err := p.registry.Resolve(ctx, pl.key.given, pl.key.manifest)
		pl.image = image
		return err
	})
}

// retries is the count of tries for a stage of an image.
func (p *Puller) retries(e Event) *retries {
	return newRetries(p.opts, p.opts.Logger.With("image", e.Image, "stage", e.Stage), func(err error) {
		e.State, e.Err = progress.Retry, err
		p.emit(e)
	})
}

// maxDemand is more than any disk has; sums of it, whatever the manifest says of
// its layers, are still numbers.
const maxDemand = 1 << 50

// demand is what the layers need of the store.
func (p *Puller) demand(image registry.Image) []store.Demand {
	all := make([]store.Demand, len(image.Layers))
	for i, l := range image.Layers {
		mediaType := layercrypt.PlainMediaType(l.MediaType)
		all[i] = store.Demand{
			ChainID: l.ChainID, Content: keyOf(l), Blob: min(l.Size, maxDemand), Spooled: p.opts.VerifyBeforeUnpack,
			Compressed: strings.HasSuffix(mediaType, "gzip") || strings.HasSuffix(mediaType, "zstd"),
		}
	}
	return all
}

// record notes in the store that the image is whole there. Without that note
// its layers are kept for less long, which is no reason to refuse it.
func (p *Puller) record(ctx context.Context, image registry.Image) {
	n := len(image.Layers)
	if n == 0 {
		return
	}
	if err := p.store.RecordImage(image.Name, image.Manifest, image.Layers[n-1].ChainID); err != nil {
		p.opts.Logger.WarnContext(ctx, "image is not recorded in the store", "image", image.Name, "stage", StageCommit, "err", err)
	}
}
