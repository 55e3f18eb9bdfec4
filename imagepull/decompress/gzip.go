// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"bufio"
	"io"

	"github.com/klauspost/compress/gzip"
)

// openGzip reads all members of a gzip file up to the end of r. The buffered
// reader is the decoder's own: it reads nothing ahead of it.
func openGzip(r *bufio.Reader) (io.ReadCloser, error) {
	return gzip.NewReader(r)
}
