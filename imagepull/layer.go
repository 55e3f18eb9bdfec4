// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"io"

	"github.com/coffer-cc/coffer/imagepull/decompress"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// A staged layer is unpacked and verified, but not visible.
type staged struct {
	*store.Staging
	facts     unpack.Facts
	encrypted bool
}

// stage takes a layer from the registry to a staging directory and verifies it.
// The caller has a download slot, which fetched gives back. On an error nothing
// is left, and the error is a *LayerError.
func (p *Puller) stage(ctx context.Context, image registry.Image, layer registry.Layer, fetched func()) (_ *staged, err error) {
	fail := func(stage Stage, err error) error { return failAt(stage, layer.Digest, err) }
	defer fetched()
	lock, err := lockOf(layer)
	if err != nil {
		return nil, fail(StageUnwrap, err)
	}
	mediaType := layercrypt.PlainMediaType(layer.MediaType)
	if !decompress.Known(mediaType) {
		_, err := decompress.NewReader(mediaType, nil) // for its error
		return nil, fail(StageDecompress, err)
	}
	staging, err := p.store.Stage(ctx)
	if err != nil {
		return nil, fail(StageApply, err)
	}
	defer func() {
		if err != nil {
			if discardErr := staging.Discard(); discardErr != nil {
				p.opts.Logger.ErrorContext(ctx, "staging is left behind", "layer", layer.Digest, "err", discardErr)
			}
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fetch := p.fetch(ctx, image, layer, fetched)
	defer fetch.close()
	blob, stage, err := p.blob(ctx, fetch, layer, lock, cancel)
	if err != nil {
		return nil, fail(stage, err)
	}
	s := &stream{p: p, layer: layer, fetch: fetch, blob: blob, cancel: cancel}
	facts, stage, err := s.run(ctx, staging.Dir, mediaType)
	if err != nil {
		return nil, fail(stage, err)
	}
	return &staged{Staging: staging, facts: facts, encrypted: lock != nil}, nil
}

// fetch makes the reader of a layer's blob; it does not connect.
func (p *Puller) fetch(ctx context.Context, image registry.Image, layer registry.Layer, fetched func()) *fetchReader {
	next := int64(0)
	return &fetchReader{
		ctx: ctx, size: layer.Size, short: -1, done: fetched, retries: newRetries(p.opts),
		open: func(offset int64) (io.ReadCloser, error) {
			return p.registry.Fetch(ctx, image.Reference, layer.Descriptor, offset)
		},
		read: func(offset int64) {
			if offset >= next || offset == layer.Size {
				next = offset + progressBytes
				p.progress(image, layer, StageFetch, offset)
			}
		},
	}
}

// blob is the stream of the layer before decompression; the key of an encrypted
// one is got while the registry answers.
func (p *Puller) blob(ctx context.Context, fetch *fetchReader, layer registry.Layer, lock *lock, abort func()) (verifier, Stage, error) {
	if lock == nil {
		return newPlain(fetch, layer), "", nil
	}
	private, stage, err := lock.beside(ctx, p.keys, fetch.connect, abort)
	if err != nil {
		return nil, stage, err
	}
	r, err := lock.reader(fetch, &private)
	if err != nil {
		return nil, StageDecrypt, err
	}
	return newSealed(r, layer), "", nil
}
