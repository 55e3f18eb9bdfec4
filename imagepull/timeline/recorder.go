// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// Recorder keeps what is told of the pull of one image. The zero value is ready;
// it is safe for concurrent use and never blocks.
type Recorder struct {
	mu       sync.Mutex
	began    time.Time // of the pull, else of what came first
	ended    time.Time // of what came last
	image    string
	manifest digest.Digest
	err      string
	spans    []*span         // of the image and of Begin
	layers   []*layer        // in the order they came
	order    []digest.Digest // of Arrange
}

// span is one stage from its start to its end, which is zero while it runs.
type span struct {
	stage      progress.Stage
	began      time.Time
	ended      time.Time
	detail     string
	err        string
	aborted    bool
	retries    []time.Time
	retriedFor string // the last reason
}

type layer struct {
	chainID, blob digest.Digest
	size          int64
	cached        bool
	unpacked      int64
	spans         []*span
}

// Attest and Evidence are the stages of attestation, which the puller does not
// see: getting a key from the key broker, and signing evidence for it.
const (
	Attest   progress.Stage = "attest"
	Evidence progress.Stage = "evidence"
)

// Record takes an event of the puller.
func (r *Recorder) Record(e progress.Event) {
	if e.Time.IsZero() {
		return // watching has begun
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.touch(e.Time)
	r.image = cmp.Or(r.image, e.Image)
	r.manifest = cmp.Or(r.manifest, e.Manifest)
	spans := &r.spans
	if e.Layer != "" {
		l := r.layer(e)
		spans = &l.spans
		if e.Stage == progress.Commit && e.State == progress.End {
			l.cached, l.unpacked = e.Cached, e.Unpacked
		}
	}
	record(spans, e)
	if e.Stage == progress.Pull && e.State == progress.End && e.Err != nil {
		r.err = e.Err.Error()
	}
}

// touch widens the time of the whole to t. The caller holds mu.
func (r *Recorder) touch(t time.Time) {
	if r.began.IsZero() || t.Before(r.began) {
		r.began = t
	}
	if t.After(r.ended) {
		r.ended = t
	}
}

func (r *Recorder) layer(e progress.Event) *layer {
	i := slices.IndexFunc(r.layers, func(l *layer) bool { return l.chainID == e.Layer })
	if i < 0 {
		i = len(r.layers)
		r.layers = append(r.layers, &layer{chainID: e.Layer, blob: e.Blob, size: e.Total})
	}
	return r.layers[i]
}

// record adds an event to the span that it is about.
func record(spans *[]*span, e progress.Event) {
	i := slices.IndexFunc(*spans, func(s *span) bool { return s.stage == e.Stage && s.ended.IsZero() })
	if i < 0 {
		if e.State != progress.Start {
			return // its start was missed, so where it belongs is not known
		}
		i = len(*spans)
		*spans = append(*spans, &span{stage: e.Stage, began: e.Time})
	}
	s := (*spans)[i]
	switch e.State {
	case progress.Retry:
		s.retries = append(s.retries, e.Time)
		if e.Err != nil {
			s.retriedFor = e.Err.Error()
		}
	case progress.End:
		s.ended = e.Time
		s.aborted = errors.Is(e.Err, progress.ErrAborted)
		if e.Err != nil && !s.aborted {
			s.err = e.Err.Error()
		}
	}
}

// Begin notes the start of something that the puller does not see, such as
// attestation, and returns what notes its end. detail is shown with it.
func (r *Recorder) Begin(stage progress.Stage, detail string) (end func(error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &span{stage: stage, began: time.Now(), detail: detail}
	r.touch(s.began)
	r.spans = append(r.spans, s)
	return func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		s.ended = time.Now()
		r.touch(s.ended)
		if err != nil {
			s.err = err.Error()
		}
	}
}

// Arrange sets the order of layers in the timeline, by chain id. Without it, and
// for others, it is the order in which they began.
func (r *Recorder) Arrange(layers []digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = slices.Clone(layers)
}

// Timeline is what was recorded so far. What has not ended lasts until now, the
// time of the last event.
func (r *Recorder) Timeline() Timeline {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := Timeline{Image: r.image, Manifest: r.manifest, Err: r.err, Took: r.ended.Sub(r.began)}
	for _, s := range r.spans {
		switch s.stage {
		case progress.Pull: // the whole
		case Attest, Evidence:
			t.Attestation = append(t.Attestation, r.span(s))
		default:
			t.Stages = append(t.Stages, r.span(s))
		}
	}
	layers := slices.Clone(r.layers)
	place := func(l *layer) int {
		if i := slices.Index(r.order, l.chainID); i >= 0 {
			return i
		}
		return len(r.order)
	}
	slices.SortStableFunc(layers, func(a, b *layer) int { return cmp.Compare(place(a), place(b)) })
	for _, l := range layers {
		out := Layer{ChainID: l.chainID, Blob: l.blob, Size: l.size, Unpacked: l.unpacked, Cached: l.cached}
		for _, s := range l.spans {
			out.Spans = append(out.Spans, r.span(s))
		}
		t.Layers = append(t.Layers, out)
	}
	return t
}

func (r *Recorder) span(s *span) Span {
	out := Span{Stage: s.stage, Start: s.began.Sub(r.began), End: r.ended.Sub(r.began), Detail: s.detail, Err: s.err, Aborted: s.aborted, RetriedFor: s.retriedFor}
	if !s.ended.IsZero() {
		out.End = s.ended.Sub(r.began)
	}
	for _, at := range s.retries {
		out.Retries = append(out.Retries, at.Sub(r.began))
	}
	return out
}
