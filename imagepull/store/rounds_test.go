// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package store_test

import "time"

const (
	// Kills are crashPlaces times crashRounds: a few hundred.
	crashRounds = 70
	// A process is killed at any moment of so long.
	crashSpan = 50 * time.Millisecond
)
