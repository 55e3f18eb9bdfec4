// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package store_test

import "time"

// With the race detector all takes longer.
const (
	crashRounds = 32
	crashSpan   = 400 * time.Millisecond
)
