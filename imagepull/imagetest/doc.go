// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package imagetest gives tests a real registry in this process and builds
// images for it: layers of any media type, plain or encrypted as ocicrypt
// encrypts, each with content no other image has. Blobs can be made to fail in
// the ways networks and attackers make them fail, and every request is counted.
//
// It is for tests only; nothing that is shipped imports it.
package imagetest
