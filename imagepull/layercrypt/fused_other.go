// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 || purego

package layercrypt

import "crypto/cipher"

// newPass returns the portable pass: there is no kernel for this processor.
func newPass(stream cipher.Stream, layerKey []byte, plain bool) pass {
	return newPortable(stream, layerKey, plain)
}
