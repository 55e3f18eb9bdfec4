// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package service carries the puller over ttrpc: RegisterLayerPuller and
// RegisterImagePuller in coffer-guest, Client in coffer-snapshotter and in tools.
// No type of package api leaves it.
//
// Errors keep their errdefs class on the way, and so does a caller that gives
// up: the pull it waited for learns of it. A watcher that does not keep up loses
// events; it never holds up a pull.
package service
