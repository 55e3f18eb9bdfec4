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
	plotHeight = 260
	plotLeft   = 52
	plotTop    = 34
	plotRight  = 14
	plotBottom = 44
)

// plotSVG draws the curves side by side, with logarithmic axes: a cost in
// proportion to the work is a line with the slope of the dashes.
func plotSVG(curves []curve) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n",
		plotWidth*len(curves), plotHeight+20)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i, c := range curves {
		fmt.Fprintf(&b, `<g transform="translate(%d,0)">`+"\n", plotWidth*i)
		c.draw(&b)
		b.WriteString("</g>\n")
	}
	fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`, plotLeft, plotHeight+8)
	for i, l := range []struct{ name, style string }{
		{"wall", wallStyle}, {"CPU", cpuStyle}, {"in proportion", guideStyle},
	} {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="0" y2="0" %s/><text x="%d" y="4">%s</text>`, i*120, i*120+24, l.style, i*120+30, l.name)
	}
	b.WriteString("</g>\n</svg>\n")
	return b.String()
}

const (
	wallStyle  = `stroke="#1f4e9c" stroke-width="2" fill="none"`
	cpuStyle   = `stroke="#c0561a" stroke-width="2" fill="none"`
	guideStyle = `stroke="#888888" stroke-width="1" stroke-dasharray="5 4" fill="none"`
)

// scale maps values to pixels by their logarithm.
type scale struct{ low, high, from, to float64 }

func (s scale) at(v float64) float64 {
	return s.from + (math.Log(v)-math.Log(s.low))/(math.Log(s.high)-math.Log(s.low))*(s.to-s.from)
}

func (c curve) draw(b *strings.Builder) {
	low, high := math.Inf(1), 0.0
	for _, v := range append(append([]float64{}, c.Wall...), c.CPU...) {
		low, high = min(low, v), max(high, v)
	}
	low, high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	if low == high {
		high *= 10
	}
	n := len(c.Work)
	x := scale{c.Work[0] / 1.3, c.Work[n-1] * 1.3, plotLeft, plotWidth - plotRight}
	y := scale{low, high, plotHeight - plotBottom, plotTop}
	fmt.Fprintf(b, `<text x="%d" y="18" font-size="13">%s</text>`+"\n", plotLeft, c.Title)
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#444444"/>`+"\n",
		plotLeft, plotTop, plotWidth-plotLeft-plotRight, plotHeight-plotTop-plotBottom)
	for _, w := range c.Work {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x.at(w), plotHeight-plotBottom+16, number(w))
	}
	for v := low; v <= high*1.001; v *= 10 {
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.3g s</text>`+"\n", plotLeft-5, y.at(v)+4, v)
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/>`+"\n", plotLeft, plotWidth-plotRight, y.at(v), y.at(v))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (plotLeft+plotWidth-plotRight)/2, plotHeight-plotBottom+32, c.Unit)
	// The dashes go through the cost in the middle.
	guide := make([]float64, n)
	for i, w := range c.Work {
		guide[i] = min(max(c.Wall[n/2]*w/c.Work[n/2], low), high)
	}
	for _, l := range []struct {
		values []float64
		style  string
	}{{guide, guideStyle}, {c.CPU, cpuStyle}, {c.Wall, wallStyle}} {
		b.WriteString(`<polyline points="`)
		for i, v := range l.values {
			fmt.Fprintf(b, "%.1f,%.1f ", x.at(c.Work[i]), y.at(v))
		}
		b.WriteString(`" ` + l.style + "/>\n")
	}
}
