// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"io"

	"github.com/coffer-cc/coffer/imagepull/decompress"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// A staged layer is unpacked and verified, but not visible.
type staged struct {
	*store.Staging
	facts     unpack.Facts
	encrypted bool
}

// stage takes the layer from the registry to a staging directory and verifies
// it. The caller has a download place, which fetched gives back. On an error
// nothing is left, and the error is a *LayerError.
func (j *job) stage(ctx context.Context, fetched func()) (_ *staged, err error) {
	defer fetched()
	p, layer := j.p, j.layer
	lock, err := lockOf(layer)
	if err != nil {
		return nil, j.fail(StageUnwrap, err)
	}
	mediaType := layercrypt.PlainMediaType(layer.MediaType)
	if !decompress.Known(mediaType) {
		_, err := decompress.NewReader(mediaType, nil) // for its error
		return nil, j.fail(StageDecompress, err)
	}
	staging, err := p.store.Stage(ctx)
	if err != nil {
		return nil, j.fail(StageApply, err)
	}
	defer func() {
		if err != nil {
			j.discard(ctx, staging)
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fetch := j.fetch(ctx, fetched)
	defer fetch.close()
	open, done, stage, err := j.opener(ctx, fetch, lock, cancel)
	if err != nil {
		return nil, j.fail(stage, err)
	}
	blob, closeBlob, stage, err := j.blob(fetch, open, staging)
	done()
	if err != nil {
		return nil, j.fail(stage, err)
	}
	defer closeBlob()
	facts, stage, err := j.unpack(ctx, &stream{p: p, layer: layer, fetch: fetch, cancel: cancel,
		blob: &observed{verifier: blob, job: j, encrypted: lock != nil}}, staging.Dir, mediaType)
	if err != nil {
		return nil, j.fail(stage, err)
	}
	return &staged{Staging: staging, facts: facts, encrypted: lock != nil}, nil
}

// unpack runs the stream once there is a place for it. The connection is made
// before, so that its bytes can wait there.
func (j *job) unpack(ctx context.Context, s *stream, dir, mediaType string) (unpack.Facts, Stage, error) {
	if err := s.fetch.connect(); err != nil && s.fetch.failure() != nil {
		return unpack.Facts{}, StageFetch, err
	}
	if err := j.pl.unpacks.acquire(ctx); err != nil {
		return unpack.Facts{}, StageDecompress, err
	}
	defer j.pl.unpacks.release()
	j.start(StageDecompress)
	j.start(StageApply)
	facts, stage, err := s.run(ctx, dir, mediaType)
	if err == nil {
		j.end(StageVerify, nil)
	}
	return facts, stage, err
}

func (j *job) discard(ctx context.Context, staging *store.Staging) {
	if err := staging.Discard(); err != nil {
		j.log().ErrorContext(ctx, "staging is left behind", "err", err)
	}
}

// fetch makes the reader of the layer's blob; it does not connect.
func (j *job) fetch(ctx context.Context, fetched func()) *fetchReader {
	told, next := int64(0), int64(0)
	tell := func(offset int64) {
		added := offset - told
		told, next = offset, offset+progressBytes
		// By value: what there is one of for each MiB must not allocate.
		e := j.about(StageFetch, progress.Update)
		e.Bytes, e.Added = offset, added
		j.p.emit(e)
	}
	f := &fetchReader{
		ctx: ctx, size: j.layer.Size, short: -1, retries: j.retries(StageFetch),
		open: func(offset int64) (io.ReadCloser, error) {
			return j.p.registry.Fetch(ctx, j.pl.image.Reference, j.layer.Descriptor, offset)
		},
		begin: func() { j.start(StageFetch) },
		read: func(offset int64) {
			if offset >= next || offset == j.layer.Size {
				tell(offset)
			}
		},
	}
	f.done = func(err error) {
		if f.offset > told {
			tell(f.offset)
		}
		if err == nil {
			j.end(StageFetch, nil, func(e *Event) { e.Bytes = f.offset })
		}
		fetched()
	}
	return f
}

// opener gets the key of an encrypted layer while the registry answers, and
// returns what makes the layer's stream; done forgets the key.
func (j *job) opener(ctx context.Context, fetch *fetchReader, lock *lock, abort func()) (open opener, done func(), stage Stage, err error) {
	if lock == nil {
		return func(r io.Reader) (verifier, error) { return newPlain(r, j.layer), nil }, func() {}, "", nil
	}
	unwrap := func(ctx context.Context) (layercrypt.PrivateOptions, error) {
		j.start(StageUnwrap)
		private, err := lock.unwrap(ctx, j.p.keys)
		if err == nil {
			j.end(StageUnwrap, nil)
		}
		return private, err
	}
	private, stage, err := beside(ctx, unwrap, fetch.connect, abort)
	if err != nil {
		return nil, nil, stage, err
	}
	open = func(r io.Reader) (verifier, error) {
		plain, err := layercrypt.NewReader(r, lock.public, private)
		if err != nil {
			return nil, err
		}
		return newSealed(plain, j.layer), nil
	}
	return open, private.Clear, "", nil
}

// blob is the stream of the layer before decompression: as it comes, or from a
// spool once all of it is verified. The caller ends it with closeBlob.
func (j *job) blob(fetch *fetchReader, open opener, staging *store.Staging) (_ verifier, closeBlob func(), _ Stage, err error) {
	if !j.p.opts.VerifyBeforeUnpack {
		blob, err := open(fetch)
		return blob, func() {}, StageDecrypt, err
	}
	spool, err := newSpool(staging)
	if err != nil {
		return nil, nil, StageFetch, j.p.store.OutOfSpace(err, j.layer.Size)
	}
	blob, stage, err := spool.fill(fetch, open, j.layer, j.p.store)
	if err != nil {
		spool.close()
		return nil, nil, stage, err
	}
	return blob, spool.close, "", nil
}
