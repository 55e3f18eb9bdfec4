// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"

	"github.com/coffer-cc/coffer/imagepull"
	events "github.com/coffer-cc/coffer/imagepull/progress"
)

// TestBars looks at what a terminal has at the end of a pull that fails.
func TestBars(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := newPullProgress(&out, false)
	p.screen = mpb.New(mpb.WithOutput(&out), mpb.WithAutoRefresh(), mpb.WithWidth(60))
	names := []string{"below", "failing", "cached", "waiting"}
	p.place = func(chainID digest.Digest) int {
		for i, name := range names {
			if digest.FromString(name) == chainID {
				return i
			}
		}
		return -1
	}
	tell := func(name string, stage events.Stage, state events.State, edit func(*imagepull.Event)) {
		e := imagepull.Event{Layer: digest.FromString(name), Blob: digest.FromString(name + " blob"), Stage: stage, State: state, Total: 1000}
		if edit != nil {
			edit(&e)
		}
		p.event(e)
	}
	p.event(imagepull.Event{Stage: events.Resolve, State: events.Start})
	for i := range names { // the uppermost first
		tell(names[len(names)-1-i], events.Fetch, events.Start, nil)
	}
	tell("below", events.Fetch, events.Retry, func(e *imagepull.Event) { e.Err = errors.New("away") })
	tell("below", events.Fetch, events.Update, func(e *imagepull.Event) { e.Bytes = 1000 })
	tell("below", events.Commit, events.End, nil)
	tell("cached", events.Commit, events.End, func(e *imagepull.Event) { e.Cached = true })
	tell("waiting", events.Verify, events.End, nil)
	tell("failing", events.Verify, events.End, func(e *imagepull.Event) { e.Err = errors.New("forged") })
	tell("failing", events.Fetch, events.Update, nil) // too late
	p.close()
	text := out.String()
	last := text[strings.LastIndex(text, short(digest.FromString("below blob"))):]
	at := 0
	for i, want := range []string{"done", "verify failed", "here already", waitsForLayer} {
		blob := short(digest.FromString(names[i] + " blob"))
		found := strings.Index(last[at:], blob)
		line, _, _ := strings.Cut(last[max(at+found, 0):], "\n")
		if found < 0 || !strings.Contains(line, want) {
			t.Errorf("%s is not %q, or not in its place: %q", names[i], want, last)
		}
		at += max(found, 0)
	}
}
