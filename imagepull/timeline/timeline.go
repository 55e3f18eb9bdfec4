// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// Timeline is one pull. All times count from its beginning.
type Timeline struct {
	Image    string
	Manifest digest.Digest
	Took     time.Duration
	// Err is why the pull failed, empty if it did not.
	Err string
	// Stages are those of the image, Attestation what Recorder.Begin noted.
	Stages, Attestation []Span
	// Layers from the bottom up, if the recorder was told their order.
	Layers []Layer
}

// Layer is one layer of the image.
type Layer struct {
	ChainID, Blob digest.Digest
	// Size is the blob's, Unpacked what the layer takes on disk; bytes.
	Size, Unpacked int64
	// Cached is set where nothing was fetched for this layer.
	Cached bool
	Spans  []Span
}

// Span is one stage from its start to its end.
type Span struct {
	Stage      progress.Stage
	Start, End time.Duration
	// Detail says more, such as which key; empty says nothing.
	Detail string
	// Err is why it failed, empty if it did not; Aborted is set where it ended
	// because something else had failed.
	Err     string
	Aborted bool
	// Retries are when it was tried again, RetriedFor the last reason.
	Retries    []time.Duration
	RetriedFor string
}

// Took is how long each stage of spans lasted, the times between its spans left
// out and no time counted twice.
func Took(spans []Span) map[progress.Stage]time.Duration {
	took := make(map[progress.Stage]time.Duration)
	reached := make(map[progress.Stage]time.Duration)
	sorted := slices.SortedFunc(slices.Values(spans), func(a, b Span) int { return int(a.Start - b.Start) })
	for _, s := range sorted {
		from := max(s.Start, reached[s.Stage])
		took[s.Stage] += max(s.End-from, 0)
		reached[s.Stage] = max(reached[s.Stage], s.End)
	}
	return took
}
