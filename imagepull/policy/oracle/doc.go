// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package oracle compares the verdicts of package policy with those of
// containers/image and sigstore-go. It has tests alone, and is a module of its
// own: run them with
//
//	go test -tags containers_image_openpgp,exclude_graphdriver_btrfs ./...
package oracle
