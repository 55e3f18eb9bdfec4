// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package imagepull pulls container images inside a TEE: it fetches layers from
// an untrusted registry, decrypts, decompresses and unpacks them into a store,
// and mounts them as a bundle.
//
// Nothing a registry sends is believed. A layer goes through one stream, fetch,
// decrypt, decompress, apply, into a staging directory that nobody sees, and is
// committed only after digest and size of the blob, its MAC where it is
// encrypted, the decompressor's own checks and the diff id all hold. Keys come
// from a KeyUnwrapper and are cleared as soon as a layer's stream has them; a
// plain image never asks for one. A layer that could not be committed, because a
// lower one failed or the process ended, is parked in the store for the next pull.
//
// The image policy is asked for the name that the caller gave before a layer is
// fetched or handed out, and the pull is measured before anything of it can be
// seen. A blob that several layers or images want at a time is fetched once.
//
// The package links neither a container runtime nor ocicrypt.
package imagepull
