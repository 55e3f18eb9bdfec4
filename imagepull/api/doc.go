// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package api is the wire between coffer-snapshotter and the puller inside the
// TEE: the ttrpc service coffer.imagepull.v1.LayerPuller. Only package service
// imports it.
//
// The host is untrusted: a request names what to pull and can keep the puller
// busy, but the answer is only a path inside the TEE; keys and layer content
// never travel here.
package api

//go:generate sh generate.sh
