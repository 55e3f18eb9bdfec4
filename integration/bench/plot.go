// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"
)

// curve is how a cost grows with the amount of work.
type curve struct {
	Title, Unit string // "layers"
	Work        []float64
	Wall, CPU   []float64 // seconds
}

// The size of one plot, in pixels.
const (
	plotWidth  = 300
	plotHeight = 280
	plotLeft   = 56
	plotTop    = 44
	plotRight  = 22
	plotBottom = 50
	plotLegend = 26 // below the plots
	plotInner  = 34 // between the frame and the first and last point
)

// The colours follow the reader's light or dark mode.
const plotStyle = `<style>
text { fill: #1f2328; font: 11px sans-serif }
.title { font-size: 13px; font-weight: bold }
.value { font-size: 10px }
.back { fill: #ffffff }
.frame { fill: none; stroke: #59636e }
.grid { stroke: #d1d9e0 }
.line { stroke-width: 2; fill: none }
.wall { stroke: #1f4e9c }
.cpu { stroke: #b3470f }
.guide { stroke: #818b98; stroke-width: 1; stroke-dasharray: 5 4 }
.dot { stroke: none }
.dot.wall { fill: #1f4e9c }
.dot.cpu { fill: #b3470f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.back { fill: #0d1117 }
.frame { stroke: #9198a1 }
.grid { stroke: #30363d }
.wall { stroke: #6ea8fe }
.cpu { stroke: #f0883e }
.guide { stroke: #9198a1 }
.dot.wall { fill: #6ea8fe }
.dot.cpu { fill: #f0883e }
}
</style>
`

// plotSVG draws the curves side by side, with logarithmic axes of which the
// upright one is the same for all: a cost in proportion to the work is a line
// with the slope of the dashes.
func plotSVG(curves []curve) string {
	var b strings.Builder
	width, height := plotWidth*len(curves), plotHeight+plotLegend
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n",
		width, height, width, height)
	b.WriteString("<title>Cost of a pull as the work grows</title>\n" + plotStyle)
	b.WriteString(`<rect class="back" width="100%" height="100%"/>` + "\n")
	seconds := secondsAxis(curves)
	for i, c := range curves {
		fmt.Fprintf(&b, `<g transform="translate(%d,0)">`+"\n", plotWidth*i)
		c.draw(&b, seconds)
		b.WriteString("</g>\n")
	}
	fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`, plotLeft, plotHeight+8)
	for i, l := range []struct{ name, class string }{
		{"wall time", "wall"}, {"CPU time of all cores", "cpu"}, {"in proportion to the work", "guide"},
	} {
		fmt.Fprintf(&b, `<line class="line %s" x1="%d" x2="%d" y1="0" y2="0"/><text x="%d" y="4">%s</text>`,
			l.class, i*180, i*180+24, i*180+30, l.name)
	}
	b.WriteString("</g>\n</svg>\n")
	return b.String()
}

// scale maps values to pixels by their logarithm.
type scale struct{ low, high, from, to float64 }

func (s scale) at(v float64) float64 {
	return s.from + (math.Log(v)-math.Log(s.low))/(math.Log(s.high)-math.Log(s.low))*(s.to-s.from)
}

// secondsAxis spans all costs.
func secondsAxis(curves []curve) scale {
	low, high := math.Inf(1), 0.0
	for _, c := range curves {
		for _, v := range append(append([]float64{}, c.Wall...), c.CPU...) {
			low, high = min(low, v), max(high, v)
		}
	}
	const room = 2.2 // for the numbers below and above the points
	return scale{low / room, high * room, plotHeight - plotBottom, plotTop}
}

func (c curve) draw(b *strings.Builder, y scale) {
	n := len(c.Work)
	x := scale{c.Work[0], c.Work[n-1], plotLeft + plotInner, plotWidth - plotRight - plotInner}
	fmt.Fprintf(b, `<text class="title" x="%d" y="20">%s</text><text x="%d" y="36">seconds</text>`+"\n", plotLeft, c.Title, plotLeft)
	for v := math.Pow(10, math.Ceil(math.Log10(y.low))); v <= y.high; v *= 10 {
		fmt.Fprintf(b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, plotLeft, plotWidth-plotRight, y.at(v), y.at(v))
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.3g</text>`+"\n", plotLeft-6, y.at(v)+4, v)
	}
	fmt.Fprintf(b, `<rect class="frame" x="%d" y="%d" width="%d" height="%d"/>`+"\n",
		plotLeft, plotTop, plotWidth-plotLeft-plotRight, plotHeight-plotTop-plotBottom)
	for _, w := range c.Work {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x.at(w), plotHeight-plotBottom+17, thousands(w))
	}
	fmt.Fprintf(b, "\n"+`<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (plotLeft+plotWidth-plotRight)/2, plotHeight-plotBottom+35, c.Unit)
	// The dashes go through the cost in the middle, as far as they are in the frame.
	at := func(w float64) float64 { return c.Wall[n/2] * w / c.Work[n/2] }
	from, to := c.Work[0], c.Work[n-1]
	from, to = max(from, from*y.low/at(from)), min(to, to*y.high/at(to))
	line(b, "guide", []float64{x.at(from), x.at(to)}, []float64{y.at(at(from)), y.at(at(to))})
	for _, l := range []struct {
		class, anchor string
		values        []float64
		right, down   float64 // of the dot, in pixels: its number
	}{{"cpu", "end", c.CPU, -4, -6}, {"wall", "start", c.Wall, 4, 13}} {
		xs, ys := make([]float64, n), make([]float64, n)
		for i, v := range l.values {
			xs[i], ys[i] = x.at(c.Work[i]), y.at(v)
		}
		line(b, l.class, xs, ys)
		for i, v := range l.values {
			fmt.Fprintf(b, `<circle class="dot %s" cx="%.1f" cy="%.1f" r="3"/>`, l.class, xs[i], ys[i])
			fmt.Fprintf(b, `<text class="value" x="%.1f" y="%.1f" text-anchor="%s">%.2g</text>`+"\n", xs[i]+l.right, ys[i]+l.down, l.anchor, v)
		}
	}
}

func line(b *strings.Builder, class string, xs, ys []float64) {
	fmt.Fprintf(b, `<polyline class="line %s" points="`, class)
	for i := range xs {
		fmt.Fprintf(b, "%.1f,%.1f ", xs[i], ys[i])
	}
	b.WriteString("\"/>\n")
}

// thousands writes a number of work with a comma where it is long.
func thousands(v float64) string {
	s := number(v)
	if len(s) > 3 && !strings.Contains(s, ".") {
		return s[:len(s)-3] + "," + s[len(s)-3:]
	}
	return s
}
