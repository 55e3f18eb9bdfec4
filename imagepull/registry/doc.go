// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package registry reads images from OCI distribution registries: it resolves
// a reference to one platform's manifest and config, both checked against
// their digests, and opens layer blobs at any offset.
//
// Everything a registry says is untrusted. What Resolve returns is bound to
// the manifest digest the caller named (or to the one the tag gave); blob bytes
// that Fetch returns are not checked here but by the reader of the blob.
//
// A call is one attempt: the caller retries, because only it knows which bytes
// it already has. Errors are *Error and say whether that is worth while.
package registry
