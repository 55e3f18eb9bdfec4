// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package registry reads images from OCI distribution registries: it resolves
// a reference to one platform's manifest and config, both checked against
// their digests, opens layer blobs at any offset, and reads the small objects
// beside an image that signatures are made of.
//
// Everything a registry says is untrusted, and so is what a mirror, a proxy or
// a token server says. What Resolve returns is bound to the manifest digest the
// caller named (or to the one the tag gave); blob bytes that Fetch returns are
// not checked here but by the reader of the blob. Credentials go to the host
// they are for and, over TLS or where that host is spoken to without, to the
// token server it names; never to where it redirects to.
//
// Where the registries configuration (package conf) names several endpoints
// for a repository, they are asked in order and their errors are reported as
// one; names in results and errors are the user's own.
//
// A call is one attempt at each endpoint: the caller retries, because only it
// knows which bytes it already has. Errors are *Error and say whether that is
// worth while. The only files read are those of LoadCertsDir, the environment
// only where Proxy asks for it.
package registry
