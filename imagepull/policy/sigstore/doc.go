// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package sigstore checks sigstore signatures: those that cosign attaches to
// images as annotated layers, and sigstore bundles. It knows formats and
// cryptography (keys, Fulcio certificates, transparency log entries, trusted
// timestamps) and nothing about images, registries or policies.
//
// Trust: every input but Trust comes from outside and may be forged. Trust is
// what the key owner decided. A Signature is good only after Trust.Verify
// returned nil; whoever calls it must then compare what was signed with what
// it has.
//
// The package reads no file, asks no server and imports only the standard
// library and libraries of single formats (CMS, Merkle proofs, DER). Errors
// carry no class: that a signature does not hold is for the caller to judge.
// It must not import sigstore's own client libraries, which link gRPC: they
// are the oracle of its tests.
package sigstore
