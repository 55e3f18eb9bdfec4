// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// ticks is about how many lines the axis has.
const ticks = 8

// grid draws the lines of the axis over the height of the rows, and the end.
func (p *picture) grid(top, bottom float64) {
	total := max(p.t.Took, time.Millisecond)
	every := step(total)
	for at := time.Duration(0); at <= total; at += every {
		x := p.x(at)
		p.addf(`<path class="grid" d="M%.1f %.1fV%.1f"/>`, x, top+17, bottom)
		if p.x(total)-x > 34 || at == 0 || at == total {
			p.text("tick", x, top+10, label(at, every))
		}
	}
	x := p.x(total)
	p.addf(`<path class="end" d="M%.1f %.1fV%.1f"/>`, x, top+17, bottom)
	p.text("tick total", x, top+10, seconds(p.t.Took))
}

// step is the distance of two lines: 1, 2 or 5 times a power of ten.
func step(total time.Duration) time.Duration {
	raw := float64(total) / ticks
	power := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, n := range []float64{1, 2, 5} {
		if raw <= n*power {
			return time.Duration(n * power)
		}
	}
	return time.Duration(10 * power)
}

// label is a time at the axis, as exact as its steps.
func label(at, every time.Duration) string {
	if at == 0 {
		return "0"
	}
	if every < 100*time.Millisecond {
		decimals := max(0, -int(math.Floor(math.Log10(every.Seconds()*1e3)+1e-9)))
		return strconv.FormatFloat(at.Seconds()*1e3, 'f', decimals, 64) + " ms"
	}
	decimals := max(0, -int(math.Floor(math.Log10(every.Seconds())+1e-9)))
	return strconv.FormatFloat(at.Seconds(), 'f', decimals, 64) + " s"
}

// seconds is a duration for people, with three digits.
func seconds(d time.Duration) string {
	switch s := d.Seconds(); {
	case s >= 100:
		return fmt.Sprintf("%.0f s", s)
	case s >= 10:
		return fmt.Sprintf("%.1f s", s)
	case s >= 1:
		return fmt.Sprintf("%.2f s", s)
	case s >= 0.01:
		return fmt.Sprintf("%.0f ms", s*1e3)
	default:
		return fmt.Sprintf("%.1f ms", s*1e3)
	}
}

// size is a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, 0
	for value >= unit && prefix < len("KMGTP")-1 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[prefix])
}

func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
