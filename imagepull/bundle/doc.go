// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package bundle makes an OCI runtime bundle from unpacked layers: an overlay
// mount at <bundle>/rootfs with a writable layer of its own, and a config.json
// derived from the image's config.
//
// The layers must be verified already. They are still the publisher's files:
// what is read from them is read inside the rootfs only, and bounded.
package bundle
