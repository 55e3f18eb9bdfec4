// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// The picture's measures, in its own units.
const (
	width     = 1080.0
	margin    = 24.0
	plotLeft  = 262.0
	plotRight = width - margin - 66
	laneStep  = 9.0
	laneThick = 7.0
	rowPad    = 7.0
)

// WriteSVG draws the timeline. The picture takes the reader's light or dark
// colours and has no scripts. Equal timelines give equal bytes.
func (t Timeline) WriteSVG(w io.Writer) error {
	p := &picture{t: t, b: new(bytes.Buffer), scale: (plotRight - plotLeft) / max(t.Took, time.Millisecond).Seconds()}
	p.draw()
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="%s">
<style>%s</style>
<rect class="paper" width="%.0f" height="%.0f" rx="10"/>
%s</svg>
`, width, p.y, width, p.y, escape("pull of "+t.Image), style(), width, p.y, p.b.String())
	return err
}

// picture is drawn from top to bottom; y is how far it is.
type picture struct {
	t     Timeline
	b     *bytes.Buffer
	bands bytes.Buffer // behind all rows
	y     float64
	scale float64 // units for each second
	rows  int
}

func (p *picture) addf(format string, args ...any) { fmt.Fprintf(p.b, format+"\n", args...) }

func (p *picture) text(class string, x, y float64, s string) {
	p.addf(`<text class="%s" x="%.1f" y="%.1f">%s</text>`, class, x, y, escape(s))
}

func (p *picture) x(d time.Duration) float64 { return plotLeft + d.Seconds()*p.scale }

func (p *picture) draw() {
	p.head()
	p.legend()
	top, above, rows := p.y, p.b, new(bytes.Buffer)
	p.b = rows // the grid lies below the rows, and is drawn when they are known
	p.y += 22
	if len(p.t.Stages) > 0 {
		p.row("image", "", p.t.Stages, "")
	}
	if len(p.t.Attestation) > 0 {
		p.row("attestation", "", p.t.Attestation, "")
	}
	for i, l := range p.t.Layers {
		note := ""
		if l.Cached {
			note = "in the store already"
		}
		p.row(fmt.Sprintf("%d  %s", i+1, short(string(l.Blob))), size(l.Size), l.Spans, note)
	}
	p.b = above
	p.b.Write(p.bands.Bytes())
	p.grid(top, p.y)
	p.b.Write(rows.Bytes())
	p.y += margin - 6
}

func (p *picture) head() {
	p.y = margin + 18
	p.text("title", margin, p.y, cut(p.t.Image, 100))
	p.y += 19
	var bytes int64
	for _, l := range p.t.Layers {
		if !l.Cached {
			bytes += l.Size
		}
	}
	facts := []string{plural(len(p.t.Layers), "layer"), size(bytes) + " fetched", seconds(p.t.Took)}
	if p.t.Manifest != "" {
		facts = append([]string{short(string(p.t.Manifest))}, facts...)
	}
	p.text("sub", margin, p.y, strings.Join(facts, "  ·  "))
	if p.t.Err != "" {
		p.y += 19
		p.addf(`<text class="failed" x="%.1f" y="%.1f">%s<title>%s</title></text>`, margin, p.y, escape(cut(p.t.Err, 150)), escape(p.t.Err))
	}
	p.y += 14
}

// legend names the colours that are used.
func (p *picture) legend() {
	used := make(map[progress.Stage]bool)
	for _, s := range p.all() {
		used[s.Stage] = true
	}
	p.y += 12
	x := margin
	for _, c := range colours() {
		if !used[c.stage] {
			continue
		}
		p.addf(`<rect class="%s" x="%.1f" y="%.1f" width="11" height="11" rx="3"/>`, class(c.stage), x, p.y-9.5)
		p.text("key", x+16, p.y, string(c.stage))
		x += 16 + 6.6*float64(len(c.stage)) + 18
	}
	p.y += 14
}

func (p *picture) all() []Span {
	all := append(append([]Span(nil), p.t.Stages...), p.t.Attestation...)
	for _, l := range p.t.Layers {
		all = append(all, l.Spans...)
	}
	return all
}

// noteWidth is about the width of a letter of a note.
const noteWidth = 5.6

// row is a label and the spans beside it.
func (p *picture) row(label, measure string, spans []Span, note string) {
	stack := lanes(spans)
	height := 2*rowPad + laneThick + laneStep*float64(max(len(stack)-1, 1))
	if p.rows%2 == 0 {
		fmt.Fprintf(&p.bands, `<rect class="band" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="4"/>`+"\n", margin-8, p.y, width-2*margin+16, height)
	}
	p.rows++
	middle := p.y + height/2 + 4
	p.text("label", margin, middle, label)
	if measure != "" {
		p.text("measure", plotLeft-14, middle, measure)
	}
	var last, first time.Duration
	for i, lane := range stack {
		y := p.y + rowPad + laneStep*float64(i)
		if len(stack) == 1 {
			y += laneStep / 2
		}
		for _, s := range lane {
			p.bar(s, y)
			if last == 0 || s.Start < first {
				first = s.Start
			}
			last = max(last, s.End)
		}
	}
	switch {
	case note != "" && p.x(last)+8+noteWidth*float64(len(note)) > width-margin:
		p.text("note before", p.x(first)-8, middle, note)
	case note != "":
		p.text("note", p.x(last)+8, middle, note)
	case len(stack) > 0:
		p.text("took", width-margin, middle, seconds(last-first))
	}
	p.y += height + 2
}

// bar is one span, with a mark for each retry.
func (p *picture) bar(s Span, y float64) {
	const least = 2.0 // so that what took no time is seen
	x := p.x(s.Start)
	w := max(p.x(s.End)-x, least)
	class := class(s.Stage)
	switch {
	case s.Err != "":
		class += " broken"
	case s.Aborted:
		class += " aborted"
	}
	p.addf(`<g><title>%s</title><rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f" rx="%.1f"/>`,
		escape(s.about()), class, x, y, w, laneThick, min(2.5, w/2))
	for _, at := range s.Retries {
		p.addf(`<path class="retry" d="M%.2f %.1fl3.2 -5h-6.4z"/>`, p.x(at), y+laneThick-1)
	}
	p.addf(`</g>`)
}

// about is what a bar says when it is pointed at.
func (s Span) about() string {
	text := fmt.Sprintf("%s: %s, from %s to %s", s.Stage, seconds(s.End-s.Start), seconds(s.Start), seconds(s.End))
	if s.Detail != "" {
		text += "\n" + s.Detail
	}
	if n := len(s.Retries); n > 0 {
		text += fmt.Sprintf("\ntried again %s: %s", plural(n, "time"), s.RetriedFor)
	}
	switch {
	case s.Err != "":
		text += "\nfailed: " + s.Err
	case s.Aborted:
		text += "\nended by a failure elsewhere"
	}
	return text
}

// escape makes text of what came from anywhere.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

// cut keeps the two ends of a long text.
func cut(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	r := []rune(s)
	return string(r[:most*2/3]) + "…" + string(r[len(r)-most/3+1:])
}

// short is the part of a digest that people compare.
func short(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(len(hex), 12)]
}
