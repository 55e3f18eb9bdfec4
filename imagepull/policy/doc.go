// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package policy decides whether an image may be pulled: the key owner's
// containers policy.json, asked for the name that the user gave.
//
// Trust: the policy, the keys and the lookaside configuration are the key
// owner's (measured, or from the KBS). Everything that comes from a registry or
// a signature store is a claim until a signature over it holds. A signature on
// the platform's manifest or on the index it was chosen from is good. Whatever
// is unknown, malformed, too large or not to be had refuses: there is no way
// from an error to "allowed".
//
// What is accepted is decided here. Libraries read OpenPGP (go-crypto) and
// Docker references; package sigstore below reads cosign's formats. The
// package must not import containers/image or sigstore-go: see the decision
// record. It writes no file, and keeps documents and keys in memory only.
//
// Classes of errors: PermissionDenied for a refusal, Unavailable where a
// store, a registry or the KBS could not be asked, InvalidArgument where the
// policy or what it names cannot be read.
package policy
