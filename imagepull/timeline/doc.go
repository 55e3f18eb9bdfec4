// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package timeline draws what happened in a pull, and when: a [Recorder] takes
// the puller's events and makes a [Timeline] of them, which is a picture (SVG)
// or a list of numbers.
//
// Names, digests and errors come from registries and are not trusted: in the
// picture they are text, escaped, and the picture has neither scripts nor links.
// The package imports no part of the puller but its events, so that a client
// elsewhere can draw a pull that it watches.
package timeline
