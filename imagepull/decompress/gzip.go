// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"io"
	"strings"

	"github.com/coffer-cc/coffer/imagepull/inflate"
)

// gzipDecoder reads all members of a gzip file up to the end of its input.
type gzipDecoder struct{ *inflate.Reader }

func newGzip(r io.Reader) (decoder, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	return gzipDecoder{z}, nil
}

func (d gzipDecoder) forget() error {
	_ = d.Reset(strings.NewReader("")) // that this is no gzip file is no matter
	return nil
}

func (d gzipDecoder) reset(r io.Reader) error { return d.Reset(r) }
