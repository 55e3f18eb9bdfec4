// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// colour is what a stage is filled with, on light and on dark paper.
type colour struct {
	stage       progress.Stage
	light, dark string
}

// colours are those of the legend, in its order. They differ in lightness too,
// so that neighbours can be told apart without colour.
func colours() []colour {
	return []colour{
		{progress.Resolve, "#64748b", "#94a3b8"},
		{progress.Policy, "#a16207", "#ca9a2c"},
		{progress.Measure, "#be123c", "#fb7185"},
		{Attest, "#db2777", "#f472b6"},
		{Evidence, "#831843", "#9d174d"},
		{progress.Fetch, "#2563eb", "#60a5fa"},
		{progress.Unwrap, "#f59e0b", "#fbbf24"},
		{progress.Decrypt, "#7c3aed", "#a78bfa"},
		{progress.Decompress, "#0891b2", "#22d3ee"},
		{progress.Apply, "#34d399", "#6ee7b7"},
		{progress.Verify, "#15803d", "#22c55e"},
		{progress.Commit, "#1e293b", "#e2e8f0"},
	}
}

const lightStyle = `
text{font:12px ui-sans-serif,system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#475569}
.title{font-size:16px;font-weight:600;fill:#0f172a}
.sub{fill:#64748b}
.failed{fill:#b91c1c}
.key{fill:#334155}
.label{font:12px ui-monospace,"SF Mono","DejaVu Sans Mono",monospace;fill:#0f172a}
.measure{text-anchor:end;fill:#64748b;font-size:11px}
.took,.note{fill:#64748b;font-size:11px}
.took{text-anchor:end}
.note{font-style:italic}
.before{text-anchor:end}
.tick{text-anchor:middle;fill:#64748b;font-size:11px}
.total{fill:#0f172a;font-weight:600}
.paper{fill:#ffffff;stroke:#e2e8f0}
.band{fill:#f8fafc}
.grid{stroke:#e2e8f0;fill:none}
.end{stroke:#94a3b8;stroke-dasharray:3 3;fill:none}
.s-other{fill:#94a3b8}
.broken{stroke:#dc2626;stroke-width:2}
.aborted{opacity:.35}
.retry{fill:#ffffff;stroke:#dc2626}
`

const darkStyle = `
text{fill:#94a3b8}
.sub,.measure,.took,.note,.tick{fill:#94a3b8}
.title,.label,.total{fill:#f1f5f9}
.failed{fill:#fca5a5}
.key{fill:#cbd5e1}
.paper{fill:#0b1220;stroke:#1e293b}
.band{fill:#111a2c}
.grid{stroke:#1e293b}
.end{stroke:#64748b}
.broken{stroke:#f87171}
.retry{fill:#0b1220;stroke:#f87171}
`

// class is the style of a stage; those nobody knows, which may come over a wire,
// share one.
func class(stage progress.Stage) string {
	if slices.ContainsFunc(colours(), func(c colour) bool { return c.stage == stage }) {
		return "s-" + string(stage)
	}
	return "s-other"
}

// style is the picture's own style sheet.
func style() string {
	var light, dark strings.Builder
	for _, c := range colours() {
		fmt.Fprintf(&light, ".%s{fill:%s}\n", class(c.stage), c.light)
		fmt.Fprintf(&dark, ".%s{fill:%s}\n", class(c.stage), c.dark)
	}
	return lightStyle + light.String() + "@media (prefers-color-scheme:dark){" + darkStyle + dark.String() + "}"
}
