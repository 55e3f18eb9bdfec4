// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/imagepull/metrics"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// values parses what m writes with Prometheus' own parser.
func values(t *testing.T, m *metrics.Metrics) map[string]float64 {
	t.Helper()
	var b bytes.Buffer
	m.Write(&b)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(&b)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for name, f := range families {
		if !strings.HasPrefix(name, "coffer_imagepull_") || f.GetHelp() == "" || f.GetType().String() == "UNTYPED" {
			t.Errorf("%s: help %q, type %s", name, f.GetHelp(), f.GetType())
		}
		for _, metric := range f.GetMetric() {
			key := strings.TrimPrefix(name, "coffer_imagepull_")
			for _, l := range metric.GetLabel() {
				key += " " + l.GetName() + "=" + l.GetValue()
			}
			switch {
			case metric.GetCounter() != nil:
				got[key] = metric.GetCounter().GetValue()
			case metric.GetGauge() != nil:
				got[key] = metric.GetGauge().GetValue()
			default:
				got[key+" count"] = float64(metric.GetHistogram().GetSampleCount())
				got[key+" sum"] = metric.GetHistogram().GetSampleSum()
			}
		}
	}
	return got
}

func check(t *testing.T, m *metrics.Metrics, want map[string]float64) {
	t.Helper()
	got := values(t, m)
	for key, value := range want {
		if v, found := got[key]; !found || v != value {
			t.Errorf("%s is %v (found: %v), want %v", key, v, found, value)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	usage := func() (store.Usage, error) {
		return store.Usage{Images: 1, Layers: 2, Parked: 7, Bytes: 1 << 40, Inodes: 4, Limit: 5, Free: 6}, nil
	}
	m := metrics.New(metrics.Options{Usage: usage})
	check(t, m, map[string]float64{"pulls_total result=ok": 0, "layers_total result=failed": 0, "running stage=fetch": 0, "stage_seconds stage=pull count": 0, "store_parked": 7, "store_bytes": 1 << 40, "store_free_bytes": 6})
	layer := func(stage progress.Stage, state progress.State, edit func(*progress.Event)) {
		e := progress.Event{Image: "host/secret:name", Layer: "sha256:chain", Blob: "sha256:blob", Stage: stage, State: state}
		if edit != nil {
			edit(&e)
		}
		m.Observe(e)
	}
	m.Observe(progress.Event{Image: "host/secret:name", Stage: progress.Pull, State: progress.Start})
	layer(progress.Fetch, progress.Start, nil)
	layer(progress.Fetch, progress.Update, func(e *progress.Event) { e.Bytes, e.Added = 10, 10 })
	layer(progress.Fetch, progress.Retry, func(e *progress.Event) { e.Err = errdefs.ErrUnavailable })
	check(t, m, map[string]float64{"running stage=fetch": 1, "running stage=pull": 1, "fetched_bytes_total": 10})
	layer(progress.Fetch, progress.Update, func(e *progress.Event) { e.Bytes, e.Added = 30, 20 })
	layer(progress.Fetch, progress.End, func(e *progress.Event) { e.Bytes, e.Took = 30, 1500*time.Millisecond })
	layer(progress.Commit, progress.Start, nil)
	layer(progress.Commit, progress.End, func(e *progress.Event) { e.Unpacked = 77 })
	for range 2 {
		layer(progress.Commit, progress.Start, nil)
		layer(progress.Commit, progress.End, func(e *progress.Event) { e.Unpacked, e.Cached = 77, true })
	}
	layer(progress.Apply, progress.Start, nil)
	layer(progress.Apply, progress.End, func(e *progress.Event) { e.Err = progress.ErrAborted })
	layer(progress.Verify, progress.Start, nil)
	layer(progress.Verify, progress.End, func(e *progress.Event) { e.Err = fmt.Errorf("x: %w", errdefs.ErrDataLoss) })
	m.Observe(progress.Event{Image: "host/secret:name", Stage: progress.Pull, State: progress.End, Err: errdefs.ErrDataLoss})
	check(t, m, map[string]float64{
		"fetched_bytes_total": 30, "unpacked_bytes_total": 77, "retries_total stage=fetch": 1,
		"layers_total result=fetched": 1, "layers_total result=cached": 2, "layers_total result=failed": 1,
		"failures_total stage=verify class=data_loss": 1, "failures_total stage=pull class=data_loss": 1, "pulls_total result=data_loss": 1,
		"stage_seconds stage=fetch count": 1, "stage_seconds stage=fetch sum": 1.5, "stage_seconds stage=commit count": 3, "stage_seconds stage=apply count": 0,
		"running stage=fetch": 0, "running stage=pull": 0, "running stage=apply": 0,
	})
	var b bytes.Buffer
	m.Write(&b)
	for _, secret := range []string{"secret", "sha256"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("%q is in the metrics", secret)
		}
	}
}

func TestClasses(t *testing.T) {
	t.Parallel()
	m := metrics.New(metrics.Options{Usage: func() (store.Usage, error) { return store.Usage{}, errdefs.ErrInternal }})
	want := make(map[string]float64)
	for name, err := range map[string]error{
		"ok": nil, "canceled": context.Canceled, "unauthenticated": errdefs.ErrUnauthenticated, "permission_denied": errdefs.ErrPermissionDenied,
		"data_loss": errdefs.ErrDataLoss, "unavailable": errdefs.ErrUnavailable, "not_found": errdefs.ErrNotFound, "invalid_argument": errdefs.ErrInvalidArgument,
		"not_implemented": errdefs.ErrNotImplemented, "resource_exhausted": errdefs.ErrResourceExhausted, "failed_precondition": errdefs.ErrFailedPrecondition, "internal": errors.New("x"),
	} {
		m.Observe(progress.Event{Stage: progress.Pull, State: progress.End, Err: err})
		want["pulls_total result="+name] = 1
	}
	check(t, m, want)
	if _, found := values(t, m)["store_bytes"]; found {
		t.Error("a store that cannot be read has a size")
	}
}

func TestHandler(t *testing.T) {
	t.Parallel()
	h := metrics.New(metrics.Options{}).Handler()
	for method, want := range map[string]int{http.MethodGet: 200, http.MethodHead: 200, http.MethodPost: 405} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/metrics", nil))
		if w.Code != want || want == 200 && !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("%s: %d %v", method, w.Code, w.Header())
		}
	}
}

func TestConcurrently(t *testing.T) {
	t.Parallel()
	m := metrics.New(metrics.Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				m.Observe(progress.Event{Layer: "l", Stage: progress.Fetch, State: progress.Start})
				m.Observe(progress.Event{Layer: "l", Stage: progress.Fetch, State: progress.End, Added: 1})
			}
		})
		wg.Go(func() { m.Write(&bytes.Buffer{}) })
	}
	wg.Wait()
	check(t, m, map[string]float64{"fetched_bytes_total": 4000, "running stage=fetch": 0, "stage_seconds stage=fetch count": 4000})
}
