// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package layercrypt reads layers in the encryption format of ocicrypt:
// AES-256-CTR, with an HMAC-SHA256 over the ciphertext under the same key.
//
// It is a contract leaf: what a publisher (ocicrypt, skopeo, buildah, nerdctl,
// coffer encrypt) writes into a layer descriptor and a blob, and what the
// puller in the TEE reads. It does no I/O of its own, holds no state between
// layers and imports the standard library only.
//
// # Trust
//
// Everything outside the private options comes from the registry and is
// hostile: the blob, the descriptor, its annotations, the public options. The
// private options come out of a key wrap that the TEE trusts. So the nonce is
// taken from the private options only, and public options that carry one are
// refused: the MAC does not cover the nonce, and whoever could choose it could
// choose the plaintext.
//
// Bytes that [Reader.Read] hands out are plaintext that nobody has vouched for
// yet. They may be parsed into a place that nobody sees; they may be used only
// after [Reader.Verify] has returned nil.
package layercrypt

import "errors"

var (
	// ErrIntegrity says that the layer is not what its publisher made: the
	// ciphertext, its size, its MAC or its plaintext digest differ.
	ErrIntegrity = errors.New("layer is not authentic")

	// ErrMalformed says that an annotation or an options document does not
	// follow the format.
	ErrMalformed = errors.New("malformed layer encryption data")

	// ErrUnsupported says that the data asks for a cipher or a digest that
	// this package does not know.
	ErrUnsupported = errors.New("unsupported layer encryption")
)
