// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package metrics counts what the puller does, in the text format of Prometheus:
// pulls and layers by their result, bytes, retries, how long stages take, what
// runs at the moment and what the store has.
//
// All names begin with coffer_imagepull_. Labels have few values, which the
// puller makes: stages and classes of errors. Names of images and digests, which
// the host chooses, are in none, so that it can neither fill the memory of the
// TEE nor learn through them what others pull.
package metrics

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	vm "github.com/VictoriaMetrics/metrics"

	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/store"
)

const prefix = "coffer_imagepull_"

// Options of Metrics. The zero value leaves the store out.
type Options struct {
	// Usage tells what the store has, each time the metrics are written.
	Usage func() (store.Usage, error)
}

// Metrics counts events. It is safe for concurrent use.
type Metrics struct {
	opts Options

	pulls, layers, failures, retries, fetched, unpacked, seconds, running family
}

// family is all the series of one name.
type family struct {
	name, kind, help string
	set              *vm.Set
}

func newFamily(name, kind, help string) family {
	return family{name: prefix + name, kind: kind, help: help, set: vm.NewSet()}
}

// label is one label of a series.
type label struct{ name, value string }

// with is the name of a series.
func (f family) with(labels ...label) string {
	if len(labels) == 0 {
		return f.name
	}
	pairs := make([]string, len(labels))
	for i, l := range labels {
		pairs[i] = fmt.Sprintf("%s=%q", l.name, l.value)
	}
	return f.name + "{" + strings.Join(pairs, ",") + "}"
}

func (f family) counter(labels ...label) *vm.Counter {
	return f.set.GetOrCreateCounter(f.with(labels...))
}

func stageLabel(s progress.Stage) label { return label{"stage", string(s)} }
func resultLabel(result string) label   { return label{"result", result} }

func (f family) write(w io.Writer) {
	_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind) // as WritePrometheus: w says
	f.set.WritePrometheus(w)
}

// New makes metrics that are all zero.
func New(opts Options) *Metrics {
	m := &Metrics{
		opts:     opts,
		pulls:    newFamily("pulls_total", "counter", "Pulls of images that have ended, by result."),
		layers:   newFamily("layers_total", "counter", "Layers of pulls that are in the store (fetched, or cached: nothing was fetched for them) or have failed."),
		failures: newFamily("failures_total", "counter", "Stages that have failed, by the class of the error."),
		retries:  newFamily("retries_total", "counter", "Requests that failed and were made again, by stage."),
		fetched:  newFamily("fetched_bytes_total", "counter", "Bytes of layers that came from registries."),
		unpacked: newFamily("unpacked_bytes_total", "counter", "Bytes on disk of the layers that were fetched."),
		seconds:  newFamily("stage_seconds", "histogram", "How long the stages took that succeeded. Those of one layer overlap."),
		running:  newFamily("running", "gauge", "Stages that run at the moment."),
	}
	for _, stage := range progress.Stages() { // so that they are there from the beginning
		m.gauge(stage)
		m.histogram(stage)
	}
	for _, result := range []string{"fetched", "cached", "failed"} {
		m.layers.counter(resultLabel(result))
	}
	m.pulls.counter(resultLabel("ok"))
	m.fetched.counter()
	m.unpacked.counter()
	return m
}

// Observe counts an event. It never blocks for long: it may be the puller's
// Options.Progress.
func (m *Metrics) Observe(e progress.Event) {
	m.fetched.counter().AddInt64(e.Added)
	switch e.State {
	case progress.Start:
		m.gauge(e.Stage).Inc()
	case progress.Retry:
		m.retries.counter(stageLabel(e.Stage)).Inc()
	case progress.End:
		m.gauge(e.Stage).Dec()
		m.end(e)
	}
}

func (m *Metrics) end(e progress.Event) {
	aborted := errors.Is(e.Err, progress.ErrAborted)
	switch {
	case e.Err == nil:
		m.histogram(e.Stage).Update(e.Took.Seconds())
	case !aborted:
		m.failures.counter(stageLabel(e.Stage), label{"class", classOf(e.Err)}).Inc()
	}
	switch {
	case e.Stage == progress.Pull:
		m.pulls.counter(resultLabel(classOf(e.Err))).Inc()
	case e.Layer == "":
	case e.Err != nil && !aborted:
		m.layers.counter(resultLabel("failed")).Inc()
	case aborted || e.Stage != progress.Commit:
	case e.Cached:
		m.layers.counter(resultLabel("cached")).Inc()
	default:
		m.layers.counter(resultLabel("fetched")).Inc()
		m.unpacked.counter().AddInt64(e.Unpacked)
	}
}

func (m *Metrics) gauge(stage progress.Stage) *vm.Gauge {
	return m.running.set.GetOrCreateGauge(m.running.with(stageLabel(stage)), nil)
}

// buckets are seconds: from what a layer of a few files takes to what a slow
// link makes of a large one.
func (m *Metrics) histogram(stage progress.Stage) *vm.PrometheusHistogram {
	return m.seconds.set.GetOrCreatePrometheusHistogramExt(m.seconds.with(stageLabel(stage)),
		[]float64{0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800})
}

// Write writes all metrics in the text format of Prometheus. Errors of w are
// w's to tell.
func (m *Metrics) Write(w io.Writer) {
	for _, f := range []family{m.pulls, m.layers, m.failures, m.retries, m.fetched, m.unpacked, m.seconds, m.running} {
		f.write(w)
	}
	if m.opts.Usage == nil {
		return
	}
	u, err := m.opts.Usage()
	if err != nil {
		return // no value is better than a wrong one
	}
	for _, g := range []struct {
		name, help string
		value      int64
	}{
		{"store_images", "Images whose layers are all in the store.", int64(u.Images)},
		{"store_layers", "Layers in the store.", int64(u.Layers)},
		{"store_parked", "Layers in the store that are verified and wait for a pull to succeed; not among store_layers.", int64(u.Parked)},
		{"store_bytes", "Bytes on disk of all layers, parked ones included.", u.Bytes},
		{"store_inodes", "Files of all layers, parked ones included.", u.Inodes},
		{"store_limit_bytes", "The size limit of the store, 0 for none.", u.Limit},
		{"store_free_bytes", "Bytes that the store's file system has left.", u.Free},
	} {
		f := newFamily(g.name, "gauge", g.help)
		f.set.NewGauge(f.name, nil).Set(float64(g.value))
		f.write(w)
	}
}

// Handler serves the metrics to GET and HEAD.
func (m *Metrics) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		m.Write(w)
	})
}
