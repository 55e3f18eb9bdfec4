// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package service carries the layer puller over ttrpc: RegisterLayerPuller in
// coffer-guest, Client in coffer-snapshotter. No type of package api leaves it.
//
// Errors keep their errdefs class on the way, and so does a caller that gives
// up: the pull it waited for learns of it.
package service
