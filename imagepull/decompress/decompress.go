// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package decompress turns a layer blob, decrypted if need be, into its tar
// stream. It knows the layer media types of OCI and Docker, and checks that the
// bytes are what the media type says.
//
// Its input is hostile: it is read before any digest or MAC has been verified.
// Memory is bounded whatever the input says, no program is executed, and no
// goroutine is started.
package decompress

import (
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Options bound what a reader gives. The zero value is the safe default.
type Options struct {
	// MaxRatio is how many bytes there may be for each compressed byte, once
	// they are more than 256 MiB; 0 is DefaultMaxRatio.
	MaxRatio int64
}

const (
	// DefaultMaxRatio is the limit where Options names none. It is just above
	// what gzip can reach (1,032), so that a layer with a huge empty file is
	// accepted as everywhere else. zstd reaches more than 10,000.
	DefaultMaxRatio = 1100

	// ratioFloor is the size of the content up to which MaxRatio does not
	// matter: small layers may be as empty as they like.
	ratioFloor = 256 << 20
)

// Known reports whether [NewReader] can read layers of this media type, which
// must be a plain one: an encrypted layer has another type until it is
// decrypted.
func Known(mediaType string) bool {
	_, known := formatOf(mediaType)
	return known
}

// NewReader returns a reader of the tar stream in r, with decoders of its own
// and the default limits. See [Pool.NewReader].
func NewReader(mediaType string, r io.Reader) (io.ReadCloser, error) {
	return new(Pool).NewReader(mediaType, r, Options{})
}

// NewReader returns a reader of the tar stream in r. It reads the first bytes
// of r at once. The reader does not end before r does: bytes behind the
// compressed data are an error, not ignored. Closing it gives its memory back,
// and is needed however the reader ended; it does not close r.
//
// An error of r is returned as it is, here and by Read. Otherwise NewReader
// gives errdefs.ErrNotImplemented for an unknown media type and
// errdefs.ErrInvalidArgument for bytes that are not what the media type says;
// Read gives errdefs.ErrDataLoss for damaged data, and
// errdefs.ErrInvalidArgument for data that needs more memory than allowed or
// that is over a limit of opts.
func (p *Pool) NewReader(mediaType string, r io.Reader, opts Options) (io.ReadCloser, error) {
	want, known := formatOf(mediaType)
	if !known {
		return nil, fmt.Errorf("layer media type %.128q is not one that can be unpacked: %w", mediaType, errdefs.ErrNotImplemented)
	}
	if opts.MaxRatio <= 0 {
		opts.MaxRatio = DefaultMaxRatio
	}
	src := &source{r: r}
	head := make([]byte, magicSize)
	n, _ := io.ReadFull(src, head) // an end before that is for the decoder to judge
	if src.err != nil {
		return nil, src.err
	}
	head = head[:n]
	if got := detect(head); got != want {
		return nil, fmt.Errorf("layer of media type %s should hold %s but holds %s: %w", mediaType, want, got, errdefs.ErrInvalidArgument)
	}
	decoder, err := p.decoder(want, io.MultiReader(bytes.NewReader(head), src))
	if err != nil {
		return nil, explain(want, src, err)
	}
	return &reader{pool: p, decoder: decoder, format: want, src: src, opts: opts}, nil
}

// reader gives a decoder's errors their class and makes them sticky.
type reader struct {
	pool    *Pool
	decoder decoder // nil once closed
	format  format
	src     *source
	opts    Options
	written int64 // bytes given
	err     error
}

func (d *reader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.decoder.Read(p)
	d.written += int64(n)
	switch {
	case err != nil:
		d.err = explain(d.format, d.src, err)
	case d.written > ratioFloor && d.written/d.opts.MaxRatio > d.src.read:
		d.err = fmt.Errorf("%s layer has more than %d times the bytes of its compressed form: raise image.limits.max_compression_ratio of coffer-guest if the layer is to be trusted: %w",
			d.format, d.opts.MaxRatio, errdefs.ErrInvalidArgument)
	}
	return n, d.err
}

func (d *reader) Close() error {
	if d.decoder == nil {
		return nil
	}
	d.pool.release(d.format, d.decoder, d.err == io.EOF) //nolint:errorlint // only the bare value means the end
	d.decoder = nil
	if d.err == nil {
		d.err = fmt.Errorf("read of a closed layer: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// explain tells apart an end, an error of the input, and an error in the data.
func explain(f format, src *source, err error) error {
	switch {
	case src.err != nil:
		return src.err
	case err == io.EOF: //nolint:errorlint // only the bare value means the end
		return err
	case exceedsMemory(err):
		return fmt.Errorf("%s layer needs a window of more than %d MiB: %w: %w", f, maxWindow>>20, errdefs.ErrInvalidArgument, err)
	default:
		return fmt.Errorf("%s layer is damaged: %w: %w", f, errdefs.ErrDataLoss, err)
	}
}

// source counts what its reader gave, and remembers its error, since decoders
// replace it.
type source struct {
	r    io.Reader
	read int64 // bytes
	err  error // other than io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.read += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
