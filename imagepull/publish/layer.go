// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

const (
	copyBuffer = 64 << 10 // bytes
	maxTries   = 3        // of one transfer that was cut
)

// Stage is what happens to a layer.
type Stage string

// A layer passes through these stages in this order; Encrypting and Pushing
// start again from 0 after an interrupted transfer.
const (
	Encrypting Stage = "encrypt"
	Pushing    Stage = "push"
	Finished   Stage = "done"
)

// Event is one step of one layer.
type Event struct {
	Layer ocispec.Descriptor // the plain layer
	Stage Stage
	Done  int64 // bytes of Layer.Size that went through the stage
}

func (e *encryptor) report(layer ocispec.Descriptor, stage Stage, done int64) {
	if e.opts.Progress != nil {
		e.opts.Progress(Event{layer, stage, done})
	}
}

// layer encrypts one layer into a temporary file and uploads that.
func (e *encryptor) layer(ctx context.Context, plain ocispec.Descriptor) (ocispec.Descriptor, error) {
	file, err := newSpool(e.opts.TempDir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() { _ = file.Close() }() // it is scratch
	var encrypted ocispec.Descriptor
	err = retrying(ctx, func() (err error) {
		encrypted, err = e.encrypt(ctx, plain, file)
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	err = retrying(ctx, func() error {
		body := e.meter(ctx, io.NewSectionReader(file, 0, encrypted.Size), plain, Pushing)
		return e.to.push(ctx, encrypted, body)
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	e.report(plain, Finished, plain.Size)
	return encrypted, nil
}

// encrypt fills the spool from the start. The plain blob has the digest that
// the manifest names, or there is an error.
func (e *encryptor) encrypt(ctx context.Context, plain ocispec.Descriptor, to *spool) (ocispec.Descriptor, error) {
	if err := to.rewind(); err != nil {
		return ocispec.Descriptor{}, err
	}
	body, err := e.from.fetch(ctx, plain)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer body.Close()
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	verified := content.NewVerifyReader(body, plain)
	metered := e.meter(ctx, verified, plain, Encrypting)
	if e.wants(plain.Digest) {
		accounts := newScan(plain.MediaType)
		defer func() { e.found(plain.Digest, accounts.end()) }()
		metered = io.TeeReader(metered, accounts.w)
	}
	ciphertext, finish, err := handler.Encrypt(metered, blockcipher.AES256CTR)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	digester := digest.Canonical.Digester()
	// The ciphertext reader encrypts in the buffer it is given.
	size, err := io.CopyBuffer(io.MultiWriter(to, digester.Hash()), ciphertext, make([]byte, copyBuffer))
	if err != nil {
		return ocispec.Descriptor{}, e.copyError(ctx, plain, to, err)
	}
	if err := verified.Verify(); err != nil {
		return ocispec.Descriptor{}, damaged(plain, err)
	}
	options, err := finish()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	options.Private.Digest = plain.Digest
	annotations, err := wrap(e.opts.Recipients, options)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{Digest: digester.Digest(), Size: size, Annotations: annotations}, nil
}

func (e *encryptor) copyError(ctx context.Context, plain ocispec.Descriptor, to *spool, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if full := fileError(to.dir, plain.Size, err); errdefs.IsResourceExhausted(full) {
		return full
	}
	return damaged(plain, err)
}

// meter reports what is read, and stops when ctx ends.
func (e *encryptor) meter(ctx context.Context, r io.Reader, layer ocispec.Descriptor, stage Stage) io.Reader {
	var done int64
	return readFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n, err := r.Read(p)
		done += int64(n)
		e.report(layer, stage, done)
		return n, err
	})
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// retrying repeats a transfer that the network cut.
func retrying(ctx context.Context, transfer func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 200 * time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := transfer()
		if err != nil && !errdefs.IsUnavailable(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(maxTries))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// spool is a temporary file of ciphertext. It has no name where the system
// allows that, so that nothing is left even by a kill.
type spool struct {
	*os.File
	dir   string
	named bool
}

func newSpool(dir string) (*spool, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	file, err := os.CreateTemp(dir, "coffer-*.encrypted")
	if err != nil {
		return nil, fmt.Errorf("temporary file: %w", fileError(dir, 0, err))
	}
	return &spool{File: file, dir: dir, named: os.Remove(file.Name()) != nil}, nil
}

func (s *spool) rewind() error {
	_, err := s.Seek(0, io.SeekStart)
	return errors.Join(err, s.Truncate(0))
}

// Close removes the file.
func (s *spool) Close() error {
	err := s.File.Close()
	if s.named {
		err = errors.Join(err, os.Remove(s.Name()))
	}
	return err
}
