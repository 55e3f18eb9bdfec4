// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// job is one layer of a pull on its way to the store, and what is told of it.
type job struct {
	p     *Puller
	pl    *pull
	layer registry.Layer

	mu   sync.Mutex
	open map[Stage]time.Time // when the stages began that have not ended; guarded by mu
}

func (p *Puller) job(pl *pull, i int) *job {
	return &job{p: p, pl: pl, layer: pl.image.Layers[i], open: make(map[Stage]time.Time)}
}

// fail makes the error of this layer.
func (j *job) fail(stage Stage, err error) error {
	return failAt(stage, j.pl.key.name, j.layer.Digest, err)
}

// log is a logger that names the layer.
func (j *job) log() *slog.Logger {
	return j.p.opts.Logger.With("image", j.pl.key.name, "layer", j.layer.Digest)
}

// about is the event of a state of a stage.
func (j *job) about(stage Stage, state progress.State) Event {
	return Event{
		Image: j.pl.key.name, Manifest: j.pl.image.Manifest, Layer: j.layer.ChainID, Blob: j.layer.Digest,
		Stage: stage, State: state, Total: j.layer.Size,
	}
}

// event tells a state of a stage; edit adds to it.
func (j *job) event(stage Stage, state progress.State, edit func(*Event)) {
	e := j.about(stage, state)
	if edit != nil {
		edit(&e)
	}
	j.p.emit(e)
}

// start tells that a stage begins. Its end is told once, by end or tell.
func (j *job) start(stage Stage) {
	j.mu.Lock()
	_, again := j.open[stage]
	if !again {
		j.open[stage] = time.Now()
	}
	j.mu.Unlock()
	if !again {
		j.event(stage, progress.Start, nil)
	}
}

// end tells that a stage that has started has ended; edit adds to that.
func (j *job) end(stage Stage, err error, edit ...func(*Event)) {
	j.mu.Lock()
	began, open := j.open[stage]
	delete(j.open, stage)
	j.mu.Unlock()
	if !open {
		return
	}
	j.event(stage, progress.End, func(e *Event) {
		e.Err, e.Took = err, time.Since(began)
		for _, f := range edit {
			f(e)
		}
	})
}

// tell ends the layer: its commit with success, or the stage that failed.
func (j *job) tell(err error, cached bool) {
	if err == nil {
		j.start(StageCommit)
		j.end(StageCommit, nil, func(e *Event) {
			e.Bytes, e.Cached = j.layer.Size, cached
			if layer, ok := j.p.store.Layer(j.layer.ChainID); ok {
				e.Unpacked = layer.Size
			}
		})
		return
	}
	failed := Stage("")
	if e := layerError(err); e != nil && e.Digest == j.layer.Digest {
		failed = e.Stage
		j.start(failed) // it may not have come so far
	}
	j.mu.Lock()
	open := slices.Collect(maps.Keys(j.open))
	j.mu.Unlock()
	for _, stage := range open {
		if stage != failed {
			j.end(stage, progress.ErrAborted)
		}
	}
	j.end(failed, err)
}

// startOver ends what is open: the fetch of the layer begins again, for a reason.
func (j *job) startOver(err error) {
	j.mu.Lock()
	open := slices.Collect(maps.Keys(j.open))
	j.mu.Unlock()
	for _, stage := range open {
		j.end(stage, progress.ErrAborted)
	}
	j.start(StageFetch)
	j.event(StageFetch, progress.Retry, func(e *Event) { e.Err = err })
}

// retries is the count of tries for a stage of this layer.
func (j *job) retries(stage Stage) *retries {
	return newRetries(j.p.opts, j.log().With("stage", stage), func(err error) {
		j.event(stage, progress.Retry, func(e *Event) { e.Err = err })
	})
}

// observed tells of the stages of a stream that nest in one another: decrypt
// from the first byte to the verdict, decompress and apply until the verdict is
// asked for, verify from then on. What is open at a failure is ended by tell.
type observed struct {
	verifier
	job       *job
	encrypted bool
	begun     bool // by Read, which is one goroutine's, before Verify
}

func (o *observed) Read(p []byte) (int, error) {
	if o.encrypted && !o.begun {
		o.begun = true
		o.job.start(StageDecrypt)
	}
	return o.verifier.Read(p)
}

func (o *observed) Verify() error {
	for _, stage := range []Stage{StageDecompress, StageApply} {
		o.job.end(stage, nil)
	}
	o.job.start(StageVerify)
	err := o.verifier.Verify()
	if err == nil {
		o.job.end(StageDecrypt, nil)
	}
	return err
}
