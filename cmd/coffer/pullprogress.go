// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/coffer-cc/coffer/imagepull"
	events "github.com/coffer-cc/coffer/imagepull/progress"
)

// pullProgress shows a pull: on a terminal a bar for each layer with the stage
// it is in, else a line for each layer that is done.
type pullProgress struct {
	out   io.Writer
	quiet bool
	// place is where a layer is in its image, if it is set; not to be changed
	// while events come.
	place func(chainID digest.Digest) int

	mu     sync.Mutex
	screen *mpb.Progress // nil when out is no terminal
	bars   map[digest.Digest]*pullBar
	began  map[digest.Digest]time.Time
}

// What a bar says while nothing happens to its layer.
const (
	waitsForRegistry = "waits to try again"
	waitsForLayer    = "waits for the layer below"
)

// pullBar is one layer. The screen reads state while it paints.
type pullBar struct {
	*mpb.Bar
	state atomic.Value // string
	ended bool
}

func newPullProgress(out io.Writer, quiet bool) *pullProgress {
	p := &pullProgress{out: out, quiet: quiet, bars: map[digest.Digest]*pullBar{}, began: map[digest.Digest]time.Time{}}
	if file, ok := out.(*os.File); ok && !quiet && term.IsTerminal(int(file.Fd())) {
		p.screen = mpb.New(mpb.WithOutput(out), mpb.WithWidth(60))
	}
	return p
}

// event is the puller's callback.
func (p *pullProgress) event(e imagepull.Event) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.screen == nil:
		p.line(e)
	case e.Layer != "":
		p.bar(e)
	}
}

// line tells what people wait for: the image, each layer, and each delay.
func (p *pullProgress) line(e imagepull.Event) {
	if _, seen := p.began[e.Layer]; !seen {
		p.began[e.Layer] = e.Time
	}
	switch {
	case e.State == events.Retry:
		fmt.Fprintf(p.out, "%s %sis tried again: %s\n", e.Stage, of(e), printable(fmt.Sprint(e.Err)))
	case e.Layer == "" && e.State == events.End && e.Err == nil && e.Stage != events.Pull:
		fmt.Fprintf(p.out, "%s %s\n", e.Stage, printable(e.Image))
	case e.Stage == events.Commit && e.State == events.End && e.Err == nil && e.Cached:
		fmt.Fprintf(p.out, "layer %s %s here already\n", short(e.Blob), size(e.Total))
	case e.Stage == events.Commit && e.State == events.End && e.Err == nil:
		fmt.Fprintf(p.out, "layer %s %s %.2f s\n", short(e.Blob), size(e.Total), e.Time.Sub(p.began[e.Layer]).Seconds())
	}
}

func of(e imagepull.Event) string {
	if e.Blob == "" {
		return ""
	}
	return "of layer " + short(e.Blob) + " "
}

// bar moves the layer's bar. Its end is what is fetched; the stage says what is
// done with it.
func (p *pullProgress) bar(e imagepull.Event) {
	b := p.bars[e.Layer]
	if b == nil {
		b = p.newBar(e)
		p.bars[e.Layer] = b
	}
	if b.ended {
		return
	}
	switch {
	case e.State == events.Retry:
		b.state.Store(waitsForRegistry)
	case e.State == events.Update:
		b.state.CompareAndSwap(waitsForRegistry, string(e.Stage))
		b.SetCurrent(min(e.Bytes, e.Total-1)) // complete is for what is committed
	case e.State == events.Start:
		b.state.Store(string(e.Stage))
	case errors.Is(e.Err, events.ErrAborted):
		b.state.Store("stopped") // it begins again, or close ends it
	case e.Err != nil && e.State == events.End:
		b.ended = true
		b.state.Store(string(e.Stage) + " failed")
		b.Abort(false)
	case e.Stage == events.Commit && e.State == events.End:
		b.ended = true
		b.state.Store("done")
		if e.Cached {
			b.state.Store("here already")
		}
		b.SetTotal(max(e.Total, 1), true)
	case e.Stage == events.Verify && e.State == events.End:
		b.state.Store(waitsForLayer)
	}
}

func (p *pullProgress) newBar(e imagepull.Event) *pullBar {
	b := &pullBar{}
	b.state.Store("")
	state := func(decor.Statistics) string { return fmt.Sprint(b.state.Load()) }
	options := []mpb.BarOption{
		mpb.PrependDecorators(decor.Name(short(e.Blob)+" "+size(e.Total), decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), decor.Any(state, decor.WC{W: len(waitsForLayer) + 1})),
	}
	if p.place != nil {
		options = append(options, mpb.BarPriority(p.place(e.Layer)))
	}
	b.Bar = p.screen.AddBar(max(e.Total, 1), options...)
	return b
}

// close leaves the terminal in order, also after a failure.
func (p *pullProgress) close() {
	if p.screen == nil {
		return
	}
	p.mu.Lock()
	for _, b := range p.bars {
		if !b.ended {
			b.Abort(false)
		}
	}
	p.mu.Unlock()
	p.screen.Wait()
}
