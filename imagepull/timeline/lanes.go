// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"cmp"
	"slices"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// lane is where a stage lies in its row, if nothing else is there.
func lane(stage progress.Stage) int {
	switch stage {
	case progress.Unwrap, progress.Decrypt, Evidence:
		return 1
	case progress.Decompress:
		return 2
	case progress.Apply:
		return 3
	}
	return 0
}

// lanes puts spans beneath one another so that none overlaps another one, and
// the same stages lie alike in all layers.
func lanes(spans []Span) [][]Span {
	sorted := slices.SortedStableFunc(slices.Values(spans), func(a, b Span) int {
		return cmp.Or(cmp.Compare(lane(a.Stage), lane(b.Stage)), cmp.Compare(a.Start, b.Start))
	})
	var out [][]Span
	for _, s := range sorted {
		i := lane(s.Stage)
		for ; i < len(out); i++ {
			if !slices.ContainsFunc(out[i], func(o Span) bool { return s.Start < o.End && o.Start < s.End }) {
				break
			}
		}
		for i >= len(out) {
			out = append(out, nil)
		}
		out[i] = append(out[i], s)
	}
	return slices.DeleteFunc(out, func(l []Span) bool { return len(l) == 0 })
}
