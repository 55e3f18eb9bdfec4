// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/progress"
)

// recorder keeps the events of a puller.
type recorder struct {
	mu     sync.Mutex
	ended  sync.Cond
	events []imagepull.Event
	pulls  int // that run
}

func (r *recorder) record(e imagepull.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	switch line(e) {
	case "pull start":
		r.pulls++
	case "pull end":
		r.pulls--
		r.ended.Broadcast()
	}
}

// take waits for the end of all pulls and returns the events since it was called
// before. (A caller has its layer before the pull has ended.)
func (r *recorder) take() []imagepull.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.pulls > 0 {
		r.ended.Wait()
	}
	events := r.events
	r.events = nil
	return events
}

func recorded() (*recorder, func(*imagepull.Options)) {
	r := &recorder{}
	r.ended.L = &r.mu
	return r, func(o *imagepull.Options) { o.Progress = r.record }
}

// checkPairs fails unless every stage that starts ends, once, and after it, and
// bytes only grow and are all told.
func checkPairs(t *testing.T, events []imagepull.Event) {
	t.Helper()
	open, bytes := make(map[string]imagepull.Event), make(map[string]int64)
	for _, e := range events {
		key := fmt.Sprint(e.Image, e.Layer, e.Stage)
		begun, running := open[key]
		switch {
		case e.State == progress.Start && running, e.State != progress.Start && !running:
			t.Errorf("%s %s of layer %q at the wrong time", e.Stage, e.State, e.Layer)
		case e.Time.Before(begun.Time), e.Bytes < begun.Bytes && e.Bytes != 0, e.Bytes > e.Total, e.Took < 0:
			t.Errorf("got %+v after %+v", e, begun)
		}
		if e.State == progress.Start {
			bytes[key] = 0 // it begins again, for another place has the bytes
		}
		if bytes[key] += e.Added; e.State == progress.Update && bytes[key] != e.Bytes {
			t.Errorf("%d bytes were added, %d are told", bytes[key], e.Bytes)
		}
		open[key] = e
		if e.State == progress.End {
			delete(open, key)
		}
	}
	for key := range open {
		t.Errorf("%s has no end", key)
	}
}

// line is an event for comparison.
func line(e imagepull.Event) string { return string(e.Stage) + " " + string(e.State) }

func TestProgress(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	r, edit := recorded()
	e := newEnv(t, newKeyring(key), func(o *imagepull.Options) { edit(o); o.Policy, o.Measure = &judge{}, &register{} })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key, Random: 3 << 20}}})
	e.registry.Fail(p.Layers[0].Digest.String(), imagetest.Fault{Cut: true, After: 2 << 20, Times: 1})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	events := r.take()
	checkPairs(t, events)
	l, got := p.Layers[0], make(map[string]int)
	for _, ev := range events {
		got[line(ev)]++
		if ev.Image != p.Reference || ev.Err != nil && ev.State != progress.Retry {
			t.Errorf("got %+v", ev)
		}
		if ev.Layer != "" && (ev.Layer != l.ChainID || ev.Blob != l.Digest || ev.Total != l.Size || ev.Manifest != p.Manifest.Digest) {
			t.Errorf("got %+v", ev)
		}
	}
	want := map[string]int{"fetch update": got["fetch update"], "fetch retry": 1}
	for _, stage := range progress.Stages() {
		want[string(stage)+" start"], want[string(stage)+" end"] = 1, 1
	}
	if diff := cmp.Diff(want, got); diff != "" || want["fetch update"] < 3 {
		t.Error(diff, want["fetch update"])
	}
	commit := events[slices.IndexFunc(events, func(ev imagepull.Event) bool { return line(ev) == "commit end" })]
	if commit.Bytes != l.Size || commit.Unpacked < 3<<20 || commit.Cached {
		t.Errorf("got %+v", commit)
	}
	// What is there is told too.
	if _, _, _, err := e.puller.PullLayer(t.Context(), p.Reference, "", p.Chain()); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, ev := range r.take() {
		lines = append(lines, line(ev))
		if ev.Stage == imagepull.StageCommit && ev.State == progress.End && !ev.Cached {
			t.Errorf("got %+v", ev)
		}
	}
	if got := strings.Join(lines, ","); got != "pull start,resolve start,resolve end,policy start,policy end,commit start,commit end,pull end" {
		t.Errorf("got %s", got)
	}
}

// TestProgressOfFailures has exactly one stage fail, and all others end.
func TestProgressOfFailures(t *testing.T) {
	t.Parallel()
	for stage, layer := range map[imagepull.Stage]imagetest.Layer{
		imagepull.StageVerify:     {WrongDiffID: true, Compression: imagetest.Gzip},
		imagepull.StageApply:      {Tar: []byte(strings.Repeat("no tar", 1000))},
		imagepull.StageDecompress: {Edit: func(d *ocispec.Descriptor) { d.MediaType += "+zstd" }},
	} {
		t.Run(string(stage), func(t *testing.T) {
			t.Parallel()
			r, edit := recorded()
			e := newEnv(t, newKeyring(), edit)
			p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, layer, {}}})
			err := e.top(p)
			events := r.take()
			checkPairs(t, events)
			var failed []string
			for _, ev := range events {
				if ev.Err != nil && !errors.Is(ev.Err, progress.ErrAborted) {
					failed = append(failed, line(ev))
				}
			}
			if want := []string{string(stage) + " end", "pull end"}; stageOf(err) != stage || !slices.Equal(failed, want) {
				t.Errorf("got %q for %v", failed, err)
			}
		})
	}
}
