// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds how far back zstd data may refer, in bytes, which is what
// the decoder must keep in memory. It is the largest that zstd's own program
// accepts without being told (--long=27).
const maxWindow = 128 << 20

// zstdDecoder reads all frames of zstd data up to the end of its input, in the
// calling goroutine. Its memory is about the largest window of those frames.
type zstdDecoder struct{ *zstd.Decoder }

func newZstd(r io.Reader) (decoder, error) {
	z, err := zstd.NewReader(r,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(maxWindow),
	)
	if err != nil {
		return nil, err
	}
	return zstdDecoder{z}, nil
}

func (d zstdDecoder) forget() error { return d.Reset(nil) }

func (d zstdDecoder) reset(r io.Reader) error { return d.Reset(r) }

// exceedsMemory reports whether a decoder refused its input for maxWindow.
func exceedsMemory(err error) bool {
	return errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)
}
