// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import "io"

// NewPortableReader is NewReader with the pass that runs on each processor.
func NewPortableReader(r io.Reader, pub PublicOptions, priv PrivateOptions) (*Reader, error) {
	return newReader(r, pub, priv, newPortable)
}
