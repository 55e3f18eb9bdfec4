// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package service is the Attestation Agent on ttrpc, under the service name that
// guest-components gave it.
//
// Whoever can connect to the socket can speak for this TEE: only processes of
// the same TEE may. The package translates; the evidence and token sources do
// the work. It imports no gRPC server.
package service

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"github.com/coffer-cc/coffer/attester/api"
	"github.com/coffer-cc/coffer/attester/eventlog"
)

// tokenKBS is the token of the Key Broker Service: JSON with the token and the
// key pair it is bound to.
const tokenKBS = "kbs"

// EvidenceSource gives evidence over report data and measures events, as
// *attester.Agent does.
type EvidenceSource interface {
	TEE() string
	Evidence(ctx context.Context, reportData []byte) ([]byte, error)
	Measure(ctx context.Context, e eventlog.Event, pcr uint64) error
}

// TokenSource attests and returns the token of a type; *kbs.Client is one.
type TokenSource interface {
	AgentToken(ctx context.Context, tokenType string) ([]byte, error)
}

// Options are the service's settings; the zero value is the default.
type Options struct {
	// Logger gets one line for each refused request. Nil discards.
	Logger *slog.Logger
}

// Register adds the agent's service to server. Errors of the sources travel as
// the gRPC status of their errdefs class, with their text as the message.
func Register(server *ttrpc.Server, evidence EvidenceSource, tokens TokenSource, opts Options) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	api.RegisterAttestationAgentServiceService(server, &service{evidence: evidence, tokens: tokens, log: opts.Logger})
}

type service struct {
	evidence EvidenceSource
	tokens   TokenSource
	log      *slog.Logger
}

// GetEvidence returns the TEE's evidence over the request's bytes.
func (s *service) GetEvidence(ctx context.Context, req *api.GetEvidenceRequest) (*api.GetEvidenceResponse, error) {
	b, err := s.evidence.Evidence(ctx, req.GetRuntimeData())
	if err != nil {
		return nil, s.refuse(ctx, "GetEvidence", err)
	}
	return &api.GetEvidenceResponse{Evidence: b}, nil
}

// GetAdditionalEvidence returns zero bytes: there are no additional devices.
func (s *service) GetAdditionalEvidence(context.Context, *api.GetAdditionalEvidenceRequest) (*api.GetEvidenceResponse, error) {
	return &api.GetEvidenceResponse{}, nil
}

// GetToken attests, if need be, and returns the token.
func (s *service) GetToken(ctx context.Context, req *api.GetTokenRequest) (*api.GetTokenResponse, error) {
	if req.GetTokenType() != tokenKBS {
		return nil, s.refuse(ctx, "GetToken", fmt.Errorf("%w: token type %.64q; ask for %q",
			errdefs.ErrNotImplemented, req.GetTokenType(), tokenKBS))
	}
	token, err := s.tokens.AgentToken(ctx, tokenKBS)
	if err != nil {
		return nil, s.refuse(ctx, "GetToken", err)
	}
	return &api.GetTokenResponse{Token: token}, nil
}

// ExtendRuntimeMeasurement measures and logs an event. Its result says so where
// the TEE has no registers or the event log is off.
func (s *service) ExtendRuntimeMeasurement(ctx context.Context, req *api.ExtendRuntimeMeasurementRequest) (
	*api.ExtendRuntimeMeasurementResponse, error,
) {
	pcr := uint64(eventlog.DefaultPCR)
	if req.RegisterIndex != nil {
		pcr = req.GetRegisterIndex()
	}
	event := eventlog.Event{Domain: req.GetDomain(), Operation: req.GetOperation(), Content: req.GetContent()}
	result := api.RuntimeMeasurementResult_OK
	err := s.evidence.Measure(ctx, event, pcr)
	switch {
	case errdefs.IsNotImplemented(err):
		result = api.RuntimeMeasurementResult_NOT_SUPPORTED
	case errdefs.IsFailedPrecondition(err):
		result = api.RuntimeMeasurementResult_NOT_ENABLED
	case err != nil:
		return nil, s.refuse(ctx, "ExtendRuntimeMeasurement", err)
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "runtime measurement",
		slog.String("tee", s.evidence.TEE()), slog.String("domain", req.GetDomain()),
		slog.String("operation", req.GetOperation()), slog.String("result", result.String()))
	return &api.ExtendRuntimeMeasurementResponse{Result: result}, nil
}

// BindInitData answers whether the TEE was launched with init-data of the
// request's digest. What a TEE was launched with cannot be bound later.
func (s *service) BindInitData(ctx context.Context, req *api.BindInitDataRequest) (*api.BindInitDataResponse, error) {
	holder, ok := s.evidence.(interface {
		CheckInitData(ctx context.Context, digest []byte) error
	})
	if !ok {
		return nil, s.refuse(ctx, "BindInitData", fmt.Errorf("%w: no TEE that could hold init-data", errdefs.ErrNotImplemented))
	}
	if err := holder.CheckInitData(ctx, req.GetDigest()); err != nil {
		return nil, s.refuse(ctx, "BindInitData", err)
	}
	return &api.BindInitDataResponse{}, nil
}

// GetTeeType returns the TEE's name.
func (s *service) GetTeeType(context.Context, *api.GetTeeTypeRequest) (*api.GetTeeTypeResponse, error) {
	return &api.GetTeeTypeResponse{Tee: s.evidence.TEE()}, nil
}

// GetAdditionalTees returns none.
func (s *service) GetAdditionalTees(context.Context, *api.GetAdditionalTeesRequest) (*api.GetAdditionalTeesResponse, error) {
	return &api.GetAdditionalTeesResponse{}, nil
}

// refusal is an error of one class and one text. errgrpc would send each
// further class of a chain as a detail, and the client would see the text twice.
type refusal struct {
	class error
	text  string
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.class }

// refuse logs why a request is refused and returns the status to answer with.
func (s *service) refuse(ctx context.Context, method string, err error) error {
	s.log.LogAttrs(ctx, slog.LevelWarn, "request refused", slog.String("method", method), slog.Any("err", err))
	return errgrpc.ToGRPC(refusal{class: errdefs.Resolve(err), text: err.Error()})
}
