// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// figure is one row of bench.json, which later benchmarks add theirs to.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Target is "<= X" or ">= X"; empty where there is none.
	Target string `json:"target"`
	// OK says that it was measured and that the target, if any, is reached.
	OK bool `json:"ok"`
}

// A target is a bound for a value.
type target struct {
	bound float64
	below bool // the value must not be above bound, rather than not below
}

func atMost(x float64) target  { return target{bound: x, below: true} }
func atLeast(x float64) target { return target{bound: x} }

// newFigure judges the value as it is shown, with three digits behind the point.
// What is no number was not measured, and misses its target.
func newFigure(name string, value float64, unit string, t target) figure {
	f := figure{Name: name, Value: math.Round(value*1000) / 1000, Unit: unit, OK: true}
	switch {
	case t == target{}:
	case t.below:
		f.Target, f.OK = "<= "+number(t.bound), f.Value <= t.bound
	default:
		f.Target, f.OK = ">= "+number(t.bound), f.Value >= t.bound
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		f.Value, f.OK = 0, false
	}
	return f
}

func number(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

// report is the content of bench.json.
type report struct {
	Figures []figure `json:"figures"`
}

// saveFigures puts figures into the file, in place of those of the same name.
func saveFigures(file string, figures []figure) error {
	var r report
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("%s: %w; remove it", file, err)
		}
	}
	for _, f := range figures {
		i := slices.IndexFunc(r.Figures, func(old figure) bool { return old.Name == f.Name })
		if i < 0 {
			r.Figures = append(r.Figures, f)
			continue
		}
		r.Figures[i] = f
	}
	if b, err = json.MarshalIndent(r, "", "  "); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return replaceFile(file, append(b, '\n'))
}

// series is one quantity over the repetitions.
type series []float64

func (s series) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// of collects one quantity of samples.
func of(samples []sample, pick func(sample) float64) series {
	s := make(series, len(samples))
	for i := range samples {
		s[i] = pick(samples[i])
	}
	return s
}

func wall(s sample) float64 { return s.Wall }
func cpu(s sample) float64  { return s.CPU }
func rss(s sample) float64  { return float64(s.RSS) / (1 << 20) }

// stageCPU is the median CPU of a stage, for each layer.
func stageCPU(samples []sample, stage string) []float64 {
	if len(samples) == 0 {
		return nil
	}
	layers := make([]float64, len(samples[0].Stages[stage]))
	for i := range layers {
		layers[i] = of(samples, func(s sample) float64 { return s.Stages[stage][i] }).median()
	}
	return layers
}

func sum(s []float64) (total float64) {
	for _, x := range s {
		total += x
	}
	return total
}
