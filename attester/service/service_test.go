// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/api"
	"github.com/coffer-cc/coffer/attester/eventlog"
	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/sample"
	"github.com/coffer-cc/coffer/attester/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type tokens struct{ err error }

func (s tokens) AgentToken(_ context.Context, tokenType string) ([]byte, error) {
	return []byte("token of type " + tokenType), s.err
}

func dial(t *testing.T, source service.EvidenceSource, tokens service.TokenSource, opts service.Options) api.AttestationAgentServiceService {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.Register(server, source, tokens, opts)
	socket := filepath.Join(t.TempDir(), "aa.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context()), listener) }()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return api.NewAttestationAgentServiceClient(client)
}

func sampleAgent() *attester.Agent { return attester.NewAgent(sample.New(nil)) }

func TestEvidence(t *testing.T) {
	t.Parallel()
	client := dial(t, sampleAgent(), tokens{}, service.Options{})
	resp, err := client.GetEvidence(t.Context(), &api.GetEvidenceRequest{RuntimeData: []byte("data")})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := evidence.ParseSample(resp.GetEvidence()); err != nil || string(e.ReportData) != "data" {
		t.Errorf("got report data %q, error %v", e.ReportData, err)
	}
	_, err = client.GetEvidence(t.Context(), &api.GetEvidenceRequest{RuntimeData: make([]byte, 65)})
	wantStatus(t, err, codes.InvalidArgument, "65 bytes")
	if resp, err := client.GetAdditionalEvidence(t.Context(), &api.GetAdditionalEvidenceRequest{}); err != nil || len(resp.GetEvidence()) != 0 {
		t.Errorf("got %d bytes of additional evidence, error %v", len(resp.GetEvidence()), err)
	}
	if resp, err := client.GetTeeType(t.Context(), &api.GetTeeTypeRequest{}); err != nil || resp.GetTee() != "sample" {
		t.Errorf("got TEE %q, error %v", resp.GetTee(), err)
	}
	if resp, err := client.GetAdditionalTees(t.Context(), &api.GetAdditionalTeesRequest{}); err != nil || len(resp.GetAdditionalTees()) != 0 {
		t.Errorf("got TEEs %v, error %v", resp.GetAdditionalTees(), err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	client := dial(t, sampleAgent(), tokens{}, service.Options{})
	if resp, err := client.GetToken(t.Context(), &api.GetTokenRequest{TokenType: "kbs"}); err != nil || string(resp.GetToken()) != "token of type kbs" {
		t.Errorf("got %q, error %v", resp.GetToken(), err)
	}
	for _, tokenType := range []string{"coco_as", ""} {
		_, err := client.GetToken(t.Context(), &api.GetTokenRequest{TokenType: tokenType})
		wantStatus(t, err, codes.Unimplemented, fmt.Sprintf("%q", tokenType))
	}

	refused := fmt.Errorf("kbs: evidence refused: %w", errdefs.ErrUnauthenticated)
	client = dial(t, sampleAgent(), tokens{err: refused}, service.Options{})
	_, err := client.GetToken(t.Context(), &api.GetTokenRequest{TokenType: "kbs"})
	wantStatus(t, err, codes.Unauthenticated, "evidence refused")
	if err := errgrpc.ToNative(err); !errdefs.IsUnauthorized(err) {
		t.Errorf("got error %v, want unauthenticated", err)
	}
}

// measuring answers every event with err, and notes the last.
type measuring struct {
	*attester.Agent
	err   error
	event eventlog.Event
	pcr   uint64
}

func (m *measuring) Measure(_ context.Context, e eventlog.Event, pcr uint64) error {
	m.event, m.pcr = e, pcr
	return m.err
}

func TestExtendRuntimeMeasurement(t *testing.T) {
	t.Parallel()
	req := &api.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "PullImage", Content: "c"}
	client := dial(t, sampleAgent(), tokens{}, service.Options{})
	if resp, err := client.ExtendRuntimeMeasurement(t.Context(), req); err != nil || resp.GetResult() != api.RuntimeMeasurementResult_NOT_SUPPORTED {
		t.Errorf("without registers: got %v, error %v", resp.GetResult(), err)
	}
	for want, refusal := range map[api.RuntimeMeasurementResult]error{
		api.RuntimeMeasurementResult_OK:            nil,
		api.RuntimeMeasurementResult_NOT_ENABLED:   errdefs.ErrFailedPrecondition,
		api.RuntimeMeasurementResult_NOT_SUPPORTED: errdefs.ErrNotImplemented,
	} {
		var log bytes.Buffer
		m := &measuring{Agent: sampleAgent(), err: refusal}
		client := dial(t, m, tokens{}, service.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		resp, err := client.ExtendRuntimeMeasurement(t.Context(), req)
		if err != nil || resp.GetResult() != want {
			t.Errorf("got %v, error %v, want %v", resp.GetResult(), err, want)
		}
		if m.event != (eventlog.Event{Domain: "d", Operation: "PullImage", Content: "c"}) || m.pcr != 17 {
			t.Errorf("measured %v into %d", m.event, m.pcr)
		}
		if !strings.Contains(log.String(), "operation=PullImage") {
			t.Errorf("the log does not name the operation: %s", log.String())
		}
	}
	m := &measuring{Agent: sampleAgent(), err: fmt.Errorf("register: %w", errdefs.ErrDataLoss)}
	client = dial(t, m, tokens{}, service.Options{})
	pcr := uint64(8)
	req.RegisterIndex = &pcr
	_, err := client.ExtendRuntimeMeasurement(t.Context(), req)
	wantStatus(t, err, codes.DataLoss, "register")
	if m.pcr != 8 {
		t.Errorf("measured into %d", m.pcr)
	}
}

func TestBindInitData(t *testing.T) {
	t.Parallel()
	client := dial(t, sampleAgent(), tokens{}, service.Options{})
	_, err := client.BindInitData(t.Context(), &api.BindInitDataRequest{Digest: []byte("d")})
	wantStatus(t, err, codes.Unimplemented, "TEE sample has no field")

	client = dial(t, launched{sampleAgent(), []byte("digest")}, tokens{}, service.Options{})
	if _, err := client.BindInitData(t.Context(), &api.BindInitDataRequest{Digest: []byte("digest")}); err != nil {
		t.Error(err)
	}
	_, err = client.BindInitData(t.Context(), &api.BindInitDataRequest{Digest: []byte("another")})
	wantStatus(t, err, codes.PermissionDenied, "launched with another")
}

// launched is an agent whose TEE was launched with init-data of a digest.
type launched struct {
	service.EvidenceSource
	digest []byte
}

func (l launched) CheckInitData(_ context.Context, digest []byte) error {
	if !bytes.Equal(digest, l.digest) {
		return fmt.Errorf("launched with another: %w", errdefs.ErrPermissionDenied)
	}
	return nil
}

func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	s, _ := status.FromError(err)
	if s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v, want %v with %q", err, code, text)
	}
}
