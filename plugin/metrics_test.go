// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"context"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/plugin"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// counted is a snapshotter that pulls a layer where it is asked for one and
// where mounts find one gone, and has one snapshot.
type counted struct {
	snapshots.Snapshotter
	puller interface {
		PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (string, int64, int64, error)
	}
}

func (c counted) Prepare(ctx context.Context, _, _ string, _ ...snapshots.Opt) ([]mount.Mount, error) {
	_, _, _, err := c.puller.PullLayer(ctx, "", "", "")
	if err == nil {
		err = errdefs.ErrAlreadyExists
	}
	return nil, err
}

func (c counted) Mounts(ctx context.Context, _ string) ([]mount.Mount, error) {
	_, _, _, err := c.puller.PullLayer(ctx, "", "", "")
	return nil, err
}

func (counted) Stat(context.Context, string) (snapshots.Info, error) {
	panic("stat") //nolint:forbidigo // what the test is about
}

func (counted) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	return fn(ctx, snapshots.Info{Kind: snapshots.KindCommitted})
}

type pulls struct{ err error }

func (p pulls) PullLayer(context.Context, string, digest.Digest, digest.Digest) (string, int64, int64, error) {
	return "", 0, 0, p.err
}
func (p pulls) RemoveLayer(context.Context, digest.Digest) error { return p.err }

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := plugin.NewMetrics()
	sn := counted{puller: m.Puller(pulls{})}
	m.Count(sn)
	client, stop, err := serveWith(t.TempDir(), sn, plugin.Options{Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, stop()) })
	layer := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:0"})
	for range 2 {
		_, err := client.Prepare(t.Context(), "k", "", layer)
		wantError(t, err, errdefs.ErrAlreadyExists, "")
	}
	if _, err := client.Mounts(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	_, err = client.Stat(t.Context(), "k")
	wantError(t, err, errdefs.ErrInternal, "")
	noError(t, client.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil }))

	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	text, err := io.ReadAll(rec.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range families {
		if f.GetHelp() == "" || f.GetType().String() == "UNTYPED" {
			t.Errorf("%s has no help or type", name)
		}
	}
	for _, line := range []string{
		`operations_total{operation="pull",result="ok"} 2`, `operations_total{operation="mounts",result="ok"} 1`,
		`operations_total{operation="stat",result="internal"} 1`, `operations_total{operation="list",result="ok"} 1`,
		`operations_total{operation="prepare",result="ok"} 0`, `running{operation="stat"} 0`, `running{operation="pull"} 0`,
		`operation_seconds_count{operation="pull"} 2`, `heals_total{result="ok"} 1`,
		`guest_calls_total{call="pull_layer",result="ok"} 3`, `snapshots{kind="committed"} 1`, `snapshots{kind="view"} 0`,
	} {
		if !strings.Contains(string(text), "\ncoffer_snapshotter_"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

func TestMetricsOfFailures(t *testing.T) {
	t.Parallel()
	m := plugin.NewMetrics()
	sn := counted{puller: m.Puller(pulls{errdefs.ErrPermissionDenied})}
	client, stop, err := serveWith(t.TempDir(), sn, plugin.Options{Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, stop()) })
	_, err = client.Prepare(t.Context(), "k", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "sha256:0"}))
	wantError(t, err, errdefs.ErrPermissionDenied, "")
	_, err = client.Mounts(t.Context(), "k")
	wantError(t, err, errdefs.ErrPermissionDenied, "")
	var text strings.Builder
	m.Write(t.Context(), &text)
	for _, line := range []string{
		`operations_total{operation="pull",result="permission_denied"} 1`, `heals_total{result="failed"} 1`, `heals_total{result="ok"} 0`,
	} {
		if !strings.Contains(text.String(), "\ncoffer_snapshotter_"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, text.String())
		}
	}
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "POST", "/metrics", nil))
	if rec.Code != 405 {
		t.Errorf("POST: %d", rec.Code)
	}
}
