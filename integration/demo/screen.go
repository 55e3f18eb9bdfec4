// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// screen prints what the demo does.
type screen struct {
	out      io.Writer
	terminal bool
}

func newScreen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	return &screen{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (s *screen) step(n, of int, title string) {
	fmt.Fprintf(s.out, "[%d/%d] %s\n", n, of, title)
}

// say prints one fact of a step.
func (s *screen) say(format string, args ...any) {
	fmt.Fprintf(s.out, "      %s\n", fmt.Sprintf(format, args...))
}

// show prints the output of a program, indented.
func (s *screen) show(text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if text != "" {
			fmt.Fprintf(s.out, "        | %s\n", line)
		}
	}
}

// progress runs work under a progress bar of total bytes. done, if not nil,
// samples how many there are; total 0 means that nobody knows. Without a
// terminal there is only a line at the end.
func (s *screen) progress(ctx context.Context, title string, total int64, done func() int64, work func(ctx context.Context) error) error {
	start := time.Now()
	out := s.out
	if !s.terminal {
		out = nil // mpb then prints nothing
	}
	p := mpb.New(mpb.WithOutput(out), mpb.WithWidth(64))
	bar := newBar(p, title, total)
	ctx, cancel := context.WithCancel(ctx)
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		sample(ctx, bar, total, done)
	}()
	err := work(ctx)
	cancel()
	<-sampled
	bar.SetTotal(-1, false)
	bar.Abort(true)
	p.Wait()
	if err == nil {
		s.say("%s: %.1f s", title, time.Since(start).Seconds())
	}
	return err
}

func newBar(p *mpb.Progress, title string, total int64) *mpb.Bar {
	name := decor.Name("      "+title+" ", decor.WCSyncSpaceR)
	elapsed := decor.Elapsed(decor.ET_STYLE_GO, decor.WC{W: 6})
	if total == 0 {
		return p.New(0, mpb.SpinnerStyle(), mpb.PrependDecorators(name), mpb.AppendDecorators(
			decor.CurrentKibiByte("% .1f"), elapsed))
	}
	return p.New(total, mpb.BarStyle(), mpb.PrependDecorators(name), mpb.AppendDecorators(
		decor.CountersKibiByte("% .1f / % .1f"), elapsed))
}

// sample moves the bar ten times a second, never quite to its end, as only
// the work's return is the end.
func sample(ctx context.Context, bar *mpb.Bar, total int64, done func() int64) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if done == nil {
			continue
		}
		n := done()
		if total > 0 {
			n = min(n, total-1)
		}
		bar.SetCurrent(n)
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
