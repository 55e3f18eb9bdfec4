// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFiguresAreJudged(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value float64
		t     target
		want  figure
	}{
		{1.15, atMost(1.15), figure{Value: 1.15, Target: "<= 1.15", OK: true}},
		{1.1504, atMost(1.15), figure{Value: 1.15, Target: "<= 1.15", OK: true}},
		{1.151, atMost(1.15), figure{Value: 1.151, Target: "<= 1.15"}},
		{3.3, atLeast(3.3), figure{Value: 3.3, Target: ">= 3.3", OK: true}},
		{3.2, atLeast(3.3), figure{Value: 3.2, Target: ">= 3.3"}},
		{7, target{}, figure{Value: 7, OK: true}},
		{math.NaN(), atMost(1), figure{Target: "<= 1"}},
		{math.Inf(1), atLeast(1), figure{Target: ">= 1"}},
		{math.NaN(), target{}, figure{}},
	} {
		if diff := cmp.Diff(c.want, newFigure("", c.value, "", c.t)); diff != "" {
			t.Errorf("%v: %s", c.value, diff)
		}
	}
}

func TestFiguresOfOthersStay(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "new", "bench.json")
	for _, figures := range [][]figure{
		{{Name: "a", Value: 1}, {Name: "b", Value: 2}},
		{{Name: "b", Value: 3}, {Name: "c", Value: 4}},
	} {
		if err := saveFigures(file, figures); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := report{Figures: []figure{{Name: "a", Value: 1}, {Name: "b", Value: 3}, {Name: "c", Value: 4}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheFloorIsTheSumOrTheLongestStage(t *testing.T) {
	t.Parallel()
	// The four apart take 4 seconds, in one pass 3: the shorter counts.
	crypt := sample{Stages: map[string][]float64{stageDigest: {1}, stageMAC: {1}, stageDecrypt: {1}, stagePlain: {1}, stageCrypt: {3}}}
	if total, _ := floor([]sample{crypt}); total != 3 {
		t.Errorf("one pass of 3 seconds: %v", total)
	}
	crypt.Stages[stageCrypt] = []float64{5}
	if total, _ := floor([]sample{crypt}); total != 4 {
		t.Errorf("four passes of 1 second: %v", total)
	}
	stages := func(fetch, apply []float64) []sample {
		s := sample{Stages: map[string][]float64{stageFetch: fetch, stageApply: apply, otherApply: {99}}}
		return []sample{s, s, s}
	}
	if total, wall := floor(stages([]float64{1e-6, 1e-6}, []float64{5, 1e-6})); math.Abs(total-5) > 1e-4 || wall != 5 {
		t.Errorf("one long stage: %v CPU, %v wall", total, wall)
	}
	many := make([]float64, 1000)
	for i := range many {
		many[i] = 1
	}
	if _, wall := floor(stages(many, many)); wall < 1 || wall > 2000 {
		t.Errorf("many stages: %v wall", wall)
	}
}

func TestMedians(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s    series
		want float64
	}{{series{3, 1, 2}, 2}, {series{4, 1, 2, 3}, 2.5}, {series{7}, 7}} {
		if got := c.s.median(); got != c.want {
			t.Errorf("median of %v: %v", c.s, got)
		}
	}
	if !math.IsNaN(series{}.median()) {
		t.Error("nothing has a median")
	}
	if got := spread(series{2, 1, 4}, "%.0f"); got != "2 (1 - 4)" {
		t.Error(got)
	}
}

func TestADocumentIsUpdated(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte("before\n"+figuresBegin+"\nold\n"+figuresEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tables := join([]table{{Title: "T", Head: []string{"a", "b"}, Rows: [][]string{{"über", "1"}, {"x", "22"}}}})
	for range 2 { // again gives the same
		if err := updateDocument(file, tables); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + figuresBegin + "\n\n**T**\n\n| a    |  b |\n|------|---:|\n| über |  1 |\n| x    | 22 |\n\n" + figuresEnd + "\nafter\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(file, []byte("no lines"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := updateDocument(file, tables); err == nil {
		t.Error("a document without the lines was changed")
	}
}

func TestThePlotIsXML(t *testing.T) {
	t.Parallel()
	svg := plotSVG([]curve{
		{Title: "layers", Unit: "layers", Work: []float64{1, 10, 100}, Wall: []float64{0.02, 0.2, 2}, CPU: []float64{0.03, 0.3, 3}},
		{Title: "bytes", Unit: "MB", Work: []float64{10, 100}, Wall: []float64{0.1, 1}, CPU: []float64{0.1, 0.9}},
	})
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Error("a point is nowhere")
	}
}

func TestTheCommandLine(t *testing.T) {
	t.Parallel()
	for _, bad := range [][]string{{"-only", "nothing"}, {"-runs", "-1"}, {"-update", "-quick"}, {"-update", "-runs", "4"}, {"more"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	c, err := parse([]string{"-quick", "-only", "pull,scale"})
	if err != nil {
		t.Fatal(err)
	}
	if c.runs != 2 || !c.wants(partPull) || c.wants(partMemory) {
		t.Errorf("%+v", c)
	}
}
