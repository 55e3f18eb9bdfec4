// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package initdata reads init-data: the configuration that a guest is launched
// with from outside its image, and whose digest the TEE holds in a field that
// cannot change after launch.
//
// The document comes from the host and is no secret. Until its digest was
// compared with the TEE's field it is hostile input, so that reading it is
// bounded in size and time; who reads it must not use a value before that. The
// package compares nothing itself, does no I/O but on the reader it is given,
// and imports nothing of the attester.
package initdata
