// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"io"

	"github.com/coffer-cc/coffer/imagepull/inflate"
)

// openGzip reads all members of a gzip file up to the end of r.
func openGzip(r io.Reader) (io.ReadCloser, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(z), nil
}
