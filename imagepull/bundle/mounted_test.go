// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	t.Parallel()
	long := "lowerdir=" + strings.Repeat("/a:", 100_000)
	table := "22 1 0:20 / /sys rw shared:7 - sysfs sysfs rw\n" +
		"222 1 0:21 / /a\\040-\\040b rw shared:7 master:1 - overlay coffer-sha256:12 rw," + long + "\n" +
		"23 1 0:22 / /b rw - overlay overlay rw\n24 1 0:23 / /c rw\n"
	for id, want := range map[uint64]mount{
		22:  {true, "sysfs", "sysfs"},
		222: {true, "overlay", "coffer-sha256:12"},
		23:  {true, "overlay", "overlay"},
		24:  {present: true},
		2:   {present: true},
	} {
		got := parseMount(table, id)
		if got != want || got.ours() != (id == 222) {
			t.Errorf("%d: got %+v", id, got)
		}
	}
}
