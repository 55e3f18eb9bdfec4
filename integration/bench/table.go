// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"
)

// table is a table of text, in Markdown that also reads well on a terminal.
type table struct {
	Title string
	Head  []string
	Rows  [][]string
	Note  string
}

func (t *table) row(cells ...string) { t.Rows = append(t.Rows, cells) }

func (t table) String() string {
	widths := make([]int, len(t.Head))
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	line := func(cells []string, fill string) {
		for i, w := range widths {
			cell := ""
			if i < len(cells) {
				cell = cells[i]
			}
			pad := strings.Repeat(fill, w-utf8.RuneCountInString(cell))
			switch {
			case fill == "-" && i > 0:
				b.WriteString("|-" + pad + ":")
			case fill == "-":
				b.WriteString("|-" + pad + "-")
			case i > 0: // numbers
				b.WriteString("| " + pad + cell + " ")
			default:
				b.WriteString("| " + cell + pad + " ")
			}
		}
		b.WriteString("|\n")
	}
	if t.Title != "" {
		b.WriteString("**" + t.Title + "**\n\n")
	}
	line(t.Head, " ")
	line(nil, "-")
	for _, row := range t.Rows {
		line(row, " ")
	}
	if t.Note != "" {
		b.WriteString("\n" + t.Note + "\n")
	}
	return b.String()
}

func join(tables []table) string {
	parts := make([]string, len(tables))
	for i, t := range tables {
		parts[i] = t.String()
	}
	return strings.Join(parts, "\n")
}

func figureTable(figures []figure) table {
	t := table{Title: "Figures", Head: []string{"figure", "value", "unit", "target", "reached"}}
	for _, f := range figures {
		value, ok := fmt.Sprintf("%.3g", f.Value), ""
		switch {
		case f.Target != "":
			ok = map[bool]string{true: "yes", false: "**no**"}[f.OK]
		case !f.OK:
			value = "not measured"
		}
		t.row(f.Name, value, f.Unit, f.Target, ok)
	}
	return t
}

// spread is a median with what it is the median of.
func spread(s series, format string) string {
	if len(s) == 0 {
		return "-"
	}
	low, high := s[0], s[0]
	for _, x := range s {
		low, high = min(low, x), max(high, x)
	}
	return fmt.Sprintf(format+" ("+format+" - "+format+")", s.median(), low, high)
}

// The lines between which a document has the figures.
const (
	figuresBegin = "<!-- figures: written by make bench -->"
	figuresEnd   = "<!-- end of figures -->"
)

// updateDocument replaces what is between the two lines of a document.
func updateDocument(file, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(b), figuresBegin)
	_, after, closed := strings.Cut(rest, figuresEnd)
	if !found || !closed {
		return fmt.Errorf("%s has no lines %q and %q", file, figuresBegin, figuresEnd)
	}
	return replaceFile(file, []byte(before+figuresBegin+"\n\n"+text+"\n"+figuresEnd+after))
}
