// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package login finds the credentials of a registry: in a docker config.json,
// from docker-credential programs, and from a document that is fetched and
// fetched again, as from a key broker.
//
// The document comes from its owner and is trusted to hold no more than its
// own credentials: it cannot name what is asked for, nor make a program run that
// Options do not allow. Secrets stay in memory and out of errors and logs. The
// package opens no connection and writes no file.
package login
