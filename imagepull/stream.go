// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"

	"github.com/coffer-cc/coffer/imagepull/decompress"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// stream is one layer on its way: fetch and decrypt in one goroutine,
// decompress and diff id in a second, apply in the caller's.
type stream struct {
	p      *Puller
	layer  registry.Layer
	fetch  *fetchReader
	blob   verifier
	cancel context.CancelFunc // ends the fetch

	aborted bool       // cancel was called from here
	content *tarStream // set once decompression has begun
}

// run unpacks the layer into dir and gives the verdict over it: blob digest
// and size, MAC, end of decompression, diff id, in this order. With an error it
// returns the stage it belongs to. No goroutine outlives it.
func (s *stream) run(ctx context.Context, dir, mediaType string) (unpack.Facts, Stage, error) {
	facts, stage, err := s.unpack(ctx, dir, mediaType)
	// A fetch that was ended from here is a consequence, not the cause.
	failure := s.fetch.failure()
	if failure != nil && (!s.aborted || !errors.Is(failure, context.Canceled)) {
		return facts, StageFetch, failure
	}
	if s.aborted {
		return facts, stage, s.p.store.OutOfSpace(err, max(s.layer.Size-s.fetch.offset, 0))
	}
	// Where the bytes made no sense, the rest of the blob is still worth its
	// download: it tells a forged blob from a broken image.
	if verdict := s.blob.Verify(); verdict != nil {
		if s.fetch.failure() != nil {
			return facts, StageFetch, verdict
		}
		return facts, StageVerify, verdict
	}
	if err != nil {
		return facts, stage, err
	}
	return facts, StageVerify, s.content.verify(s.layer)
}

// unpack runs the stages up to apply and waits for their goroutines. The caller
// has a place for it: until then the bytes wait in the connection, not here.
func (s *stream) unpack(ctx context.Context, dir, mediaType string) (unpack.Facts, Stage, error) {
	kit := &s.p.kit
	blobRing, tarRing := kit.take(), kit.take()
	defer kit.giveBack(blobRing, tarRing) // after all that reads from them is closed
	blob := newReadAhead(s.blob, blobRing)
	defer blob.Close()
	decompressed, err := kit.decoders.NewReader(mediaType, blob, decompress.Options{MaxRatio: s.p.opts.MaxCompressionRatio})
	if err != nil {
		s.abort(err)
		return unpack.Facts{}, StageDecompress, err
	}
	defer func() { _ = decompressed.Close() }() // reading only: nothing is lost
	s.content = newTarStream(decompressed)
	tar := newReadAhead(s.content, tarRing)
	facts, err := s.p.tar.Apply(ctx, dir, tar)
	if err != nil {
		s.abort(err)
	}
	blob.Close()
	tar.Close()
	if err != nil && tar.failure() != nil {
		s.abort(tar.failure())
		return facts, StageDecompress, tar.failure()
	}
	return facts, StageApply, err
}

// abort ends the fetch after an error that is not about the content: the
// goroutines can only be waited for once it has ended.
func (s *stream) abort(err error) {
	if !aboutContent(err) {
		s.aborted = true
		s.cancel()
	}
}
