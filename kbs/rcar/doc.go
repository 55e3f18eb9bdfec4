// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package rcar holds the messages of the Request, Challenge, Attestation,
// Response handshake between an attester and a Key Broker Service, version
// 0.4.0, and the one computation both sides must agree on bit by bit: the
// digest that binds the TEE's evidence to the challenge and to the TEE's
// ephemeral public key.
//
// It is a contract leaf: standard library only, no I/O. Everything parsed here
// is untrusted; parsers bound what they accept and ignore unknown members.
package rcar
