// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package api is the wire between the puller inside the TEE and those who ask it:
// the ttrpc services coffer.imagepull.v1.LayerPuller, for coffer-snapshotter, and
// ImagePuller, for whole images and those who watch. Only package service imports
// it.
//
// The host is untrusted: a request names what to pull and can keep the puller
// busy, but the answer is only paths inside the TEE, digests, names and sizes;
// keys and layer content never travel here.
package api

//go:generate sh generate.sh
