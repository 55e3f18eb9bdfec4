// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import "testing"

func TestGCPercent(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, tc := range []struct {
		what       string
		live, scan uint64
		want       int
	}{
		{"at the start", 0, 0, 50},
		{"hardly anything is alive", mib, mib / 2, 100},
		{"a pull of gzip", 3 * mib, mib, 66},
		{"two windows of zstd", 20 * mib, 2 * mib, 10},
		{"eight windows of zstd", 80 * mib, 4 * mib, 2},
		{"names of many files", 100 * mib, 100 * mib, 50},
		{"the largest windows there are", 1024 * mib, mib, 1},
	} {
		if got := gcPercent(tc.live, tc.scan); got != tc.want {
			t.Errorf("%s: %d %%, want %d %%", tc.what, got, tc.want)
		}
	}
}
