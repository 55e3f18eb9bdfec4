// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// progressBytes is how much a connection must bring for its failure not to
// count as one more in a row.
const progressBytes = 1 << 20

// fetchReader reads a blob once from start to end, over as many connections as
// it takes: after a failure it goes on at the byte that is next, so that no
// byte is hashed twice.
type fetchReader struct {
	ctx  context.Context //nolint:containedctx // of the one layer this reader lives for
	open func(offset int64) (io.ReadCloser, error)
	size int64
	// begin is told, once, that the first connection is made; read the bytes so
	// far; done, once, that no more are needed, and why if that is a failure.
	begin func()
	read  func(offset int64)
	done  func(error)

	retries *retries
	body    io.ReadCloser
	offset  int64
	since   int64 // offset at the last failure
	short   int64 // offset at which an answer ended regularly, but too early; -1 for none
	begun   bool
	err     error // sticky
}

// connect opens the first connection, so that it is there when the key is.
func (f *fetchReader) connect() error {
	if !f.begun {
		f.begun = true
		f.begin()
	}
	for f.body == nil && f.err == nil {
		body, err := f.open(f.offset)
		if err != nil {
			f.failed(err)
			continue
		}
		f.body = body
	}
	return f.err
}

func (f *fetchReader) Read(p []byte) (int, error) {
	for {
		if err := f.connect(); err != nil {
			return 0, err
		}
		n, err := f.body.Read(p)
		f.offset += int64(n)
		if n > 0 && f.offset <= f.size {
			f.read(f.offset)
		}
		switch {
		case f.offset > f.size:
			f.end(fmt.Errorf("the registry sends more than the %d bytes of the manifest: push the image again: %w", f.size, errdefs.ErrDataLoss))
			return 0, f.err
		case err == nil:
		case f.offset == f.size: // however the connection ends, all is here
			f.end(io.EOF)
		case errors.Is(err, io.EOF) && f.offset == f.short:
			f.end(fmt.Errorf("the registry has only %d of the %d bytes of the manifest: push the image again: %w", f.offset, f.size, errdefs.ErrDataLoss))
		case errors.Is(err, io.EOF):
			f.short = f.offset
			f.failed(fmt.Errorf("the registry ended the blob after %d of %d bytes: %w", f.offset, f.size, errdefs.ErrUnavailable))
		default:
			f.failed(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// failed drops the connection and either pauses for the next one or gives up.
func (f *fetchReader) failed(err error) {
	f.closeBody()
	if f.offset-f.since >= progressBytes {
		f.retries.reset()
	}
	f.since = f.offset
	if err := f.retries.wait(f.ctx, err); err != nil {
		f.end(err)
	}
}

func (f *fetchReader) end(err error) {
	f.err = err
	f.closeBody()
	f.done(f.failure())
}

// failure is what ended the fetch before its end, nil if nothing did.
func (f *fetchReader) failure() error {
	if errors.Is(f.err, io.EOF) {
		return nil
	}
	return f.err
}

func (f *fetchReader) closeBody() {
	if f.body != nil {
		_ = f.body.Close()
		f.body = nil
	}
}

// close lets the connection go; later reads fail.
func (f *fetchReader) close() {
	if f.err == nil {
		f.end(io.ErrClosedPipe)
	}
}
