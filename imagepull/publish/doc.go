// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package publish encrypts container images and says what an image is
// encrypted for. It runs on the publisher's machine, where plain layers may be
// seen: nothing that runs in the TEE links it.
//
// [Encrypt] reads an image from a registry or an OCI layout, encrypts each
// distinct layer once with ocicrypt's AES_256_CTR_HMAC_SHA256 and a fresh key,
// wraps that key for every recipient, and writes the image to a registry or an
// OCI layout. Plain bytes stay in memory; only ciphertext is spooled to disk.
// A layer is uploaded after the digest of its plain blob held, and manifest
// and tag are written last, so that a destination never names half an image.
//
// [Inspect] needs no key: it reads manifests and their annotations only.
//
// The key wrappers of ocicrypt are called directly. Its EncryptLayer keeps
// them in a process-wide table filled from the environment, which would let a
// stray variable add a recipient.
package publish
