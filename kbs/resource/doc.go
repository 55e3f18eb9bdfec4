// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package resource is the naming of what a Key Broker Service hands out: the
// kbs:// URI that images, configuration and clients write, and the
// repository/type/tag key under which the resource plugin stores a secret.
//
// It is a contract leaf: standard library only, no I/O. Every byte it parses
// is untrusted, and what it returns needs no further escaping to be put in an
// HTTP request line.
package resource
