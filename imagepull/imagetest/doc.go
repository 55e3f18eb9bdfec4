// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package imagetest gives tests a real registry in this process and builds
// images for it: layers of any media type, plain or encrypted as ocicrypt
// encrypts, each with content no other image has. Blobs and manifests can be made
// to fail in the ways networks and attackers make them fail, and every request is
// counted.
//
// [Faults] is the table of those ways, [Images] that of images that are wrong as
// they were published. What a client is to make of each is for its own tests to
// say.
//
// It is for tests only; nothing that is shipped imports it.
package imagetest
