// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"fmt"
	"io"
	"net/http"

	vm "github.com/VictoriaMetrics/metrics"
)

const prefix = "coffer_cache_"

// result is how a request for a blob was answered.
type result string

const (
	resultHit    result = "hit"    // from the disk
	resultShared result = "shared" // from a download of another request
	resultMiss   result = "miss"   // it began the download
	resultDirect result = "direct" // passed through, not kept
	resultAbsent result = "absent" // 404
	resultFailed result = "failed" // 5xx, or cut
)

func results() []result {
	return []result{resultHit, resultShared, resultMiss, resultDirect, resultAbsent, resultFailed}
}

// metrics are those of one cache. No label holds what a guest or a registry
// chooses.
type metrics struct {
	requests                                     map[result]*vm.Counter
	fetched, direct, served, evictions, evictedB *vm.Counter
	retries, wrong                               *vm.Counter
	running, readers                             *vm.Gauge
	families                                     []family
}

// family is all the series of one name.
type family struct {
	name, kind, help string
	set              *vm.Set
}

func newMetrics() *metrics {
	m := &metrics{requests: make(map[result]*vm.Counter)}
	family := func(name, kind, help string) family {
		f := family{prefix + name, kind, help, vm.NewSet()}
		m.families = append(m.families, f)
		return f
	}
	counter := func(name, help string) *vm.Counter {
		f := family(name, "counter", help)
		return f.set.NewCounter(f.name)
	}
	gauge := func(name, help string) *vm.Gauge {
		f := family(name, "gauge", help)
		return f.set.NewGauge(f.name, nil)
	}
	f := family("requests_total", "counter", "Requests for blobs, by how they were answered.")
	for _, r := range results() {
		m.requests[r] = f.set.NewCounter(fmt.Sprintf("%s{result=%q}", f.name, r))
	}
	m.fetched = counter("fetched_bytes_total", "Bytes that came from registries to be kept.")
	m.direct = counter("direct_bytes_total", "Bytes passed through from registries without being kept.")
	m.served = counter("served_bytes_total", "Bytes of blobs sent to guests.")
	m.evictions = counter("evictions_total", "Blobs removed to make room.")
	m.evictedB = counter("evicted_bytes_total", "Bytes removed to make room.")
	m.retries = counter("retries_total", "Downloads that broke off and were resumed.")
	m.wrong = counter("wrong_total", "Blobs that did not match their digest, of a registry or on disk.")
	m.running = gauge("downloads", "Downloads that run at the moment.")
	m.readers = gauge("readers", "Requests for blobs that are being answered at the moment.")
	return m
}

func (m *metrics) evicted(size int64) {
	m.evictions.Inc()
	m.evictedB.AddInt64(size)
}

// WriteMetrics writes the metrics in the text format of Prometheus. All names
// begin with coffer_cache_. Errors of w are w's to tell.
func (c *Cache) WriteMetrics(w io.Writer) {
	families := c.metrics.families
	blobs, bytes := c.shelf.usage()
	for _, g := range []struct {
		name, help string
		value      int64
	}{
		{"blobs", "Blobs on disk.", int64(blobs)},
		{"bytes", "Bytes of blobs on disk and of downloads that run.", bytes},
		{"limit_bytes", "The size limit.", c.shelf.limit},
	} {
		f := family{prefix + g.name, "gauge", g.help, vm.NewSet()}
		f.set.NewGauge(f.name, nil).Set(float64(g.value))
		families = append(families[:len(families):len(families)], f)
	}
	for _, f := range families {
		_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind) // as WritePrometheus: w says
		f.set.WritePrometheus(w)
	}
}

// MetricsHandler serves the metrics to GET and HEAD. They tell how much the
// guests pull, so it is not for the guests.
func (c *Cache) MetricsHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !reading(w, r) {
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		c.WriteMetrics(w)
	})
}
