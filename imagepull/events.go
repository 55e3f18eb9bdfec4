// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"time"

	"github.com/coffer-cc/coffer/imagepull/progress"
)

// Event is one step of a pull.
type Event = progress.Event

// Stage is a step of a pull, in errors, events, logs and metrics alike.
type Stage = progress.Stage

// The stages: those of an image, then those of a layer in their order.
const (
	StagePull       = progress.Pull
	StageResolve    = progress.Resolve
	StagePolicy     = progress.Policy
	StageMeasure    = progress.Measure
	StageFetch      = progress.Fetch
	StageUnwrap     = progress.Unwrap
	StageDecrypt    = progress.Decrypt
	StageDecompress = progress.Decompress
	StageApply      = progress.Apply
	StageVerify     = progress.Verify
	StageCommit     = progress.Commit
)

// emit tells Options.Progress and all watchers of an event.
func (p *Puller) emit(e Event) {
	e.Time = time.Now()
	if p.opts.Progress != nil {
		p.opts.Progress(e)
	}
	p.feed.Publish(e)
}

// Watch calls f with each event of all pulls from now on, until ctx ends or f
// returns an error; that is what it returns. The first call has the zero Event
// and says that watching has begun. A slow f never holds up a pull: beyond a
// bounded queue events are dropped, updates first, and missed says how many were
// in front of this one.
func (p *Puller) Watch(ctx context.Context, f func(e Event, missed uint64) error) error {
	return p.feed.Watch(ctx, f)
}

// span tells that a stage starts, and with the function that it returns how it
// ends.
func (p *Puller) span(e Event) (end func(error)) {
	began := time.Now()
	e.State = progress.Start
	p.emit(e)
	return func(err error) {
		e.State, e.Err, e.Took = progress.End, err, time.Since(began)
		p.emit(e)
	}
}
