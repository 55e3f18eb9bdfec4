// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

// progress shows the layers: as bars on a terminal, else one line each.
type progress struct {
	out io.Writer

	mu     sync.Mutex
	screen *mpb.Progress // nil when out is no terminal
	bars   map[digest.Digest]*bar
}

// bar is one layer. The screen reads stage while it paints, without
// progress.mu: whoever holds that may be waiting for the screen.
type bar struct {
	*mpb.Bar
	stage atomic.Value // publish.Stage
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, bars: map[digest.Digest]*bar{}}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		p.screen = mpb.New(mpb.WithOutput(out), mpb.WithWidth(60))
	}
	return p
}

// event is publish's callback.
func (p *progress) event(e publish.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.screen == nil {
		if e.Stage == publish.Finished {
			fmt.Fprintf(p.out, "layer %s %s\n", short(e.Layer.Digest), size(e.Layer.Size))
		}
		return
	}
	b := p.bars[e.Layer.Digest]
	if b == nil {
		b = p.newBar(e)
		p.bars[e.Layer.Digest] = b
	}
	b.stage.Store(e.Stage)
	switch e.Stage {
	case publish.Encrypting:
		b.SetCurrent(e.Done)
	case publish.Pushing:
		b.SetCurrent(e.Layer.Size + e.Done)
	case publish.Finished:
		b.SetTotal(2*e.Layer.Size, true)
	}
}

// newBar starts a bar that runs over the layer twice: encrypt, then push.
func (p *progress) newBar(e publish.Event) *bar {
	b := &bar{}
	b.stage.Store(e.Stage)
	stage := func(decor.Statistics) string { return fmt.Sprint(b.stage.Load()) }
	b.Bar = p.screen.AddBar(2*e.Layer.Size+1,
		mpb.PrependDecorators(decor.Name(short(e.Layer.Digest)+" "+size(e.Layer.Size), decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.Any(stage, decor.WC{W: 8})))
	return b
}

// close leaves the terminal in order, also after a failure.
func (p *progress) close() {
	if p.screen == nil {
		return
	}
	p.mu.Lock()
	for _, b := range p.bars {
		b.Abort(b.stage.Load() != publish.Finished) // no effect on a finished bar
	}
	p.mu.Unlock()
	p.screen.Wait()
}

// short returns the part of a digest that people compare.
func short(d digest.Digest) string {
	const length = len("sha256:") + 12
	if len(d) > length {
		d = d[:length]
	}
	return string(d)
}

// size formats bytes for people.
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
