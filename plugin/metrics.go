// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	vm "github.com/VictoriaMetrics/metrics"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	prefix = "coffer_snapshotter_"
	// pullOperation is Prepare of an image layer, which asks for a pull.
	pullOperation = "pull"
	// countTimeout bounds the count of snapshots for one scrape.
	countTimeout = 5 * time.Second
)

// Metrics counts what containerd asks of the snapshotter, in the text format of
// Prometheus. All names begin with coffer_snapshotter_. Labels are operations,
// kinds and classes of errors, never names of images or snapshots. The zero value
// does not work: use NewMetrics. Its methods may be called at any time.
type Metrics struct {
	operations, seconds, running, heals, guest family
	sn                                         snapshots.Snapshotter
}

// family is all the series of one name.
type family struct {
	name, kind, help string
	set              *vm.Set
}

func newFamily(name, kind, help string) family {
	return family{prefix + name, kind, help, vm.NewSet()}
}

func (f family) with(pairs ...string) string {
	if len(pairs) == 0 {
		return f.name
	}
	var labels []string
	for i := 0; i+1 < len(pairs); i += 2 {
		labels = append(labels, fmt.Sprintf("%s=%q", pairs[i], pairs[i+1]))
	}
	return f.name + "{" + strings.Join(labels, ",") + "}"
}

func (f family) write(w io.Writer) {
	_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind) // as WritePrometheus: w says
	f.set.WritePrometheus(w)
}

// operations are the methods of snapshots.v1 as values of a label.
func operations() []string {
	return []string{"prepare", pullOperation, "view", "mounts", "commit", "remove", "stat", "update", "list", "usage", "cleanup"}
}

// NewMetrics returns metrics that are all zero.
func NewMetrics() *Metrics {
	m := &Metrics{
		operations: newFamily("operations_total", "counter", "Calls of containerd that have ended, by the class of their error; pull is Prepare of an image layer."),
		seconds:    newFamily("operation_seconds", "histogram", "How long those calls took."),
		running:    newFamily("running", "gauge", "Calls that run at the moment; pull: image layers that are waited for."),
		heals:      newFamily("heals_total", "counter", "Image layers that were gone below a container and were asked for again."),
		guest:      newFamily("guest_calls_total", "counter", "Calls to coffer-guest that have ended, by the class of their error."),
	}
	for _, o := range operations() { // so that they are there from the beginning
		m.operations.set.GetOrCreateCounter(m.operations.with("operation", o, "result", "ok"))
		m.gauge(o)
		m.histogram(o)
	}
	for _, result := range []string{"ok", "failed"} {
		m.heals.set.GetOrCreateCounter(m.heals.with("result", result))
	}
	return m
}

// Count makes sn's snapshots part of the metrics. It is called before anything
// else is.
func (m *Metrics) Count(sn snapshots.Snapshotter) { m.sn = sn }

func (m *Metrics) gauge(operation string) *vm.Gauge {
	return m.running.set.GetOrCreateGauge(m.running.with("operation", operation), nil)
}

// buckets are seconds: from a call that only touches metadata to a pull over a
// slow link.
func (m *Metrics) histogram(operation string) *vm.PrometheusHistogram {
	return m.seconds.set.GetOrCreatePrometheusHistogramExt(m.seconds.with("operation", operation),
		[]float64{0.0005, 0.001, 0.0025, 0.005, 0.02, 0.1, 0.5, 1, 5, 30, 120, 600})
}

func operation(method string, req any) string {
	o := strings.ToLower(path.Base(method))
	if p, ok := req.(*snapshotsapi.PrepareSnapshotRequest); ok && p.GetLabels()[snapshots.LabelSnapshotRef] != "" {
		return pullOperation
	}
	return o
}

type operationKey struct{}

func (m *Metrics) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	o := operation(info.FullMethod, req)
	done := m.begin(o)
	resp, err := next(context.WithValue(ctx, operationKey{}, o), req)
	done(err)
	return resp, err
}

func (m *Metrics) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	done := m.begin(operation(info.FullMethod, nil))
	err := next(srv, stream)
	done(err)
	return err
}

func (m *Metrics) begin(o string) (done func(error)) {
	start := time.Now()
	m.gauge(o).Inc()
	return func(err error) {
		m.gauge(o).Dec()
		m.histogram(o).Update(time.Since(start).Seconds())
		class := classOf(err)
		if o == pullOperation && class == "already_exists" {
			class = "ok" // that the layer is there
		}
		m.operations.set.GetOrCreateCounter(m.operations.with("operation", o, "result", class)).Inc()
	}
}

// classOf is the class of an error as the value of a label.
func classOf(err error) string {
	code := status.Code(plain(err))
	switch code {
	case codes.OK:
		return "ok"
	case codes.Canceled, codes.DeadlineExceeded:
		return "canceled"
	case codes.Unauthenticated:
		return "unauthenticated"
	case codes.PermissionDenied:
		return "permission_denied"
	case codes.DataLoss:
		return "data_loss"
	case codes.Unavailable:
		return "unavailable"
	case codes.NotFound:
		return "not_found"
	case codes.AlreadyExists:
		return "already_exists"
	case codes.InvalidArgument:
		return "invalid_argument"
	case codes.FailedPrecondition:
		return "failed_precondition"
	case codes.ResourceExhausted:
		return "resource_exhausted"
	case codes.Unimplemented:
		return "not_implemented"
	}
	return "internal"
}

// Write writes all metrics. Errors of w are w's to tell.
func (m *Metrics) Write(ctx context.Context, w io.Writer) {
	for _, f := range []family{m.operations, m.seconds, m.running, m.heals, m.guest} {
		f.write(w)
	}
	if m.sn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	count := map[snapshots.Kind]int{snapshots.KindActive: 0, snapshots.KindView: 0, snapshots.KindCommitted: 0}
	err := m.sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		count[info.Kind]++
		return ctx.Err()
	})
	if err != nil {
		return // no value is better than a wrong one
	}
	f := newFamily("snapshots", "gauge", "Snapshots, by kind.")
	for kind, n := range count {
		f.set.NewGauge(f.with("kind", strings.ToLower(kind.String())), nil).Set(float64(n))
	}
	f.write(w)
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
		m.Write(r.Context(), w)
	})
}
