// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import "strings"

const (
	encryptedSuffix = "+encrypted"

	// Releases of ocicrypt before its 1.2 spelled one media type this way.
	zstdMisspelled = "+zsdt"
	zstdSuffix     = "+zstd"
)

// IsEncrypted reports whether a layer of this media type is encrypted. It is
// true for each media type of ocicrypt's specification and for Docker's layer
// types with the same suffix.
func IsEncrypted(mediaType string) bool {
	return strings.HasSuffix(mediaType, encryptedSuffix)
}

// PlainMediaType returns the media type that the layer has once decrypted, and
// mediaType itself where it is not an encrypted one.
func PlainMediaType(mediaType string) string {
	plain, encrypted := strings.CutSuffix(mediaType, encryptedSuffix)
	if !encrypted {
		return mediaType
	}
	if stem, misspelled := strings.CutSuffix(plain, zstdMisspelled); misspelled {
		return stem + zstdSuffix
	}
	return plain
}
