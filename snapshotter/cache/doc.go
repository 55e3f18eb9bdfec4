// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package cache is a node's store of blobs by digest, which the guests of the
// node ask before the registry: one download for all of them.
//
// It answers what a registries configuration calls a mirror, for blobs alone:
//
//	GET, HEAD /v2/<repository>/blobs/<digest>?ns=<registry>   whole or one range
//	GET, HEAD /v2/                                            ping
//
// Manifests, tags, referrers and uploads are 404: the guest asks the registry
// for them, with its own credentials. So a guest learns digests only where its
// credentials, or another guest's user, let it; and who knows the digest of a
// blob may read the blob, which is ciphertext where secrecy matters.
//
// In the guest's registries configuration that is, for each registry:
//
//	[[registry]]
//	location = "registry.example"
//	[[registry.mirror]]
//	location = "10.0.2.2:5001"            # the cache
//	insecure = true                       # it speaks plain HTTP
//	pull-from-mirror = "digest-only"      # it has no tags
//	namespace-proxy = "registry.example"  # what the cache is to ask
//
// # Trust
//
// The guest trusts nothing here: it checks the digest of what it reads and asks
// the registry where it does not match. The cache trusts neither registries nor
// guests. What it keeps has been compared with its digest, when it came and
// again after a restart or a day; a download that does not match is dropped and
// the answers that share it are cut before their end. A guest can make it fetch
// blobs by digest from the registries that are allowed in Options and from no
// other place, can tell by the time it takes whether a blob was there, and can
// keep the cache so busy that the others ask the registry themselves.
//
// A guest's Authorization header is neither used nor passed on, and no answer is
// 401: a guest's login must not reach the host. What is missing is fetched with
// the node's own credentials (Options.Credential), or without. With them every
// guest can read, by digest, all that the node may read: where layers of private
// images are not encrypted, give none. A blob that they do not open is 404, and
// the guest asks the registry itself.
//
// # Answers
//
// 404 is about this blob: ask the registry for it. 502 and 503 are about the
// cache or the registry behind it: ask elsewhere for a while. A connection cut
// in the middle of a body means that the rest could not be had, or is wrong.
//
// # Disk
//
//	lock                           held while the cache is open
//	blobs/<algorithm>/<hex>.<size> a whole blob; its mtime is when it was used
//	partial/                       downloads; emptied at the start
//
// A blob is renamed into place when its digest holds. Nothing is synced: after a
// crash a file may be short, which the size in its name shows at the start, or
// have wrong content, which shows when it is used for the first time. The least
// recently used go when the limit is reached or the disk is full. What does not
// fit even so is passed through without being kept.
//
// The package must not import imagepull.
package cache
