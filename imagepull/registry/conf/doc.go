// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package conf reads a containers-registries.conf, version 2: where an image
// is to be asked for, beside or instead of the registry that its name says.
//
// The file is trusted as far as it can make a pull fail, ask elsewhere, or talk
// without TLS; it can never make a digest or a signature hold that does not.
// A name that has a registry is only ever asked for at that registry, its own
// mirrors and its own location. The package does no I/O and imports nothing of
// the puller.
//
// Where it differs from other readers of the same file:
//   - a prefix matches at the start of the name and ends where a component
//     does; port 443 is the same as none;
//   - a prefix that is a host without a port blocks all its ports, and allows
//     them to be insecure; its mirrors and its location are for none of the
//     others, whose images are other ones. A wildcard stands for all ports;
//   - a prefix that is a host goes before a wildcard of the same length;
//   - [[registry]] may leave out location, which then is the prefix;
//   - a prefix that two entries have is an error, not a matter of order;
//   - without unqualified-search-registries a short name is Docker Hub's, as in
//     all of coffer; an empty list refuses short names.
package conf
