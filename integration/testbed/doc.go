// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package testbed runs one whole coffer machine in a private folder: a
// registry, coffer-kbs, coffer-guest with the sample TEE, coffer-snapshotter
// and containerd, all of them the real programs, on loopback ports and private
// sockets. The integration tests and the demo are built on it.
//
// Everything a testbed starts lives in its own process and mount namespace.
// When the namespace's first process ends, the kernel ends all others
// (containers and their shims included) and takes down every mount, so nothing
// outlives the program that made the testbed, not even when it is killed.
// Close also removes the folder and the cgroups.
//
// Testbeds share no state: several may run at once. Root is needed. Nothing
// here is part of the product.
package testbed
