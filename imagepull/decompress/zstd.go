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

// openZstd reads all frames of zstd data up to the end of r, in the calling
// goroutine.
func openZstd(r io.Reader) (io.ReadCloser, error) {
	decoder, err := zstd.NewReader(r,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(maxWindow),
	)
	if err != nil {
		return nil, err
	}
	return decoder.IOReadCloser(), nil
}

// exceedsMemory reports whether a decoder refused its input for maxWindow.
func exceedsMemory(err error) bool {
	return errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded)
}
