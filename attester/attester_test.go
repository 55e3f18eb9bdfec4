// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package attester_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-tdx-guest/client"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/tdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noTEE is a machine without TDX.
func noTEE() tdx.Options {
	return tdx.Options{
		TSM:        &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": faketsm.Report611(0)}},
		OpenDevice: func() (client.Device, error) { return nil, errors.New("no device here") },
	}
}

func TestDetect(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		is   func(error) bool
		text []string
	}{
		{"auto", errdefs.IsNotFound, []string{"tdx", "no device here", `"sample"`, "development"}},
		{"tdx", errdefs.IsNotFound, []string{"no device here"}},
		{"snp", errdefs.IsNotImplemented, []string{"snp"}},
		{"", errdefs.IsInvalidArgument, []string{`"auto"`}},
		{"TDX", errdefs.IsInvalidArgument, []string{`"tdx"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, err := attester.Detect(tc.name, attester.Options{TDX: noTEE()})
			if a != nil || !tc.is(err) {
				t.Fatalf("got attester %v, error %v", a, err)
			}
			for _, text := range tc.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not say %q", err, text)
				}
			}
		})
	}
}

func TestSample(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a, err := attester.Detect("sample", attester.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "no protection") {
		t.Errorf("no warning: %s", log.String())
	}
	agent := attester.NewAgent(a)
	b, err := agent.Evidence(t.Context(), []byte("report data"))
	if err != nil || agent.TEE() != "sample" {
		t.Fatalf("got TEE %q, error %v", agent.TEE(), err)
	}
	got, err := evidence.ParseSample(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(evidence.SampleEvidence{SVN: "1", ReportData: []byte("report data")}, got); diff != "" {
		t.Errorf("evidence (-want +got):\n%s", diff)
	}
	for _, n := range []int{0, 65} {
		if _, err := agent.Evidence(t.Context(), make([]byte, n)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d bytes: got error %v, want invalid argument", n, err)
		}
	}
}

// slow is a TEE that counts the calls at work and answers when told.
type slow struct {
	atWork  atomic.Int32
	release chan struct{}
}

func (*slow) TEE() string { return "slow" }

func (s *slow) Evidence(context.Context, []byte) ([]byte, error) {
	defer s.atWork.Add(-1)
	if s.atWork.Add(1) > 1 {
		return nil, errors.New("two calls at once")
	}
	<-s.release
	return []byte("{}"), nil
}

func TestAgentTakesTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tee := &slow{release: make(chan struct{})}
		agent := attester.NewAgent(tee)
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				if _, err := agent.Evidence(t.Context(), []byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := agent.Evidence(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v, want canceled", err)
		}
		close(tee.release)
		calls.Wait()
	})
}
