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
	open, done, stage, err := p.opener(ctx, fetch, layer, lock, cancel)
	if err != nil {
		return nil, fail(stage, err)
	}
	blob, closeBlob, stage, err := p.blob(fetch, open, layer, staging)
	done()
	if err != nil {
		return nil, fail(stage, err)
	}
	defer closeBlob()
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

// opener gets the key of an encrypted layer while the registry answers, and
// returns what makes the layer's stream; done forgets the key.
func (p *Puller) opener(ctx context.Context, fetch *fetchReader, layer registry.Layer, lock *lock, abort func()) (open opener, done func(), stage Stage, err error) {
	if lock == nil {
		return func(r io.Reader) (verifier, error) { return newPlain(r, layer), nil }, func() {}, "", nil
	}
	private, stage, err := lock.beside(ctx, p.keys, fetch.connect, abort)
	if err != nil {
		return nil, nil, stage, err
	}
	open = func(r io.Reader) (verifier, error) {
		plain, err := layercrypt.NewReader(r, lock.public, private)
		if err != nil {
			return nil, err
		}
		return newSealed(plain, layer), nil
	}
	return open, private.Clear, "", nil
}

// blob is the stream of the layer before decompression: as it comes, or from a
// spool once all of it is verified. The caller ends it with closeBlob.
func (p *Puller) blob(fetch *fetchReader, open opener, layer registry.Layer, staging *store.Staging) (_ verifier, closeBlob func(), _ Stage, err error) {
	if !p.opts.VerifyBeforeUnpack {
		blob, err := open(fetch)
		return blob, func() {}, StageDecrypt, err
	}
	spool, err := newSpool(staging)
	if err != nil {
		return nil, nil, StageFetch, p.store.OutOfSpace(err, layer.Size)
	}
	blob, stage, err := spool.fill(fetch, open, layer, p.store)
	if err != nil {
		spool.close()
		return nil, nil, stage, err
	}
	return blob, spool.close, "", nil
}
