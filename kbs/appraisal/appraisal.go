// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package appraisal takes the evidence of an attester, has it verified, asks
// the attestation policy what it earns, and returns the appraisals that go
// into an EAR token. It decides what evidence is worth, not what it opens.
package appraisal

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/coffer-cc/coffer/kbs/verifier"
)

// cpuPolicy is the attestation policy asked about a CPU.
const cpuPolicy = "default_cpu"

// Policy says what claims are worth; *policy.Library implements it.
type Policy interface {
	Appraise(ctx context.Context, id string, input map[string]any) (policy.Verdict, error)
}

// Options tune a Service.
type Options struct {
	// Logger gets one line per appraisal; nil discards them.
	Logger *slog.Logger
}

// Service appraises attestations. It is safe for concurrent use.
type Service struct {
	verifiers verifier.Set
	policy    Policy
	log       *slog.Logger
}

// New returns a Service. The set says which TEEs are accepted at all: sample
// evidence is accepted only where its verifier is in the set.
func New(verifiers verifier.Set, p Policy, o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{verifiers: verifiers, policy: p, log: o.Logger}
}

// Refusal says why evidence was refused, for the attester's operator. Its
// class is that of Err.
type Refusal struct {
	Rule, Expected, Got, Next string
	Err                       error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Result is what goes into the token.
type Result struct {
	// Submods maps a submodule's name to its EAR appraisal.
	Submods map[string]any
	// Status is the worst status of the submodules.
	Status string
	// PolicyDigest identifies the attestation policy text.
	PolicyDigest string
}

// Names lists the TEEs whose evidence is accepted.
func (s *Service) Names() []string { return s.verifiers.Names() }

// Check says whether evidence of that TEE would be looked at. The error is a
// *Refusal.
func (s *Service) Check(tee string) error {
	_, err := s.verifiers.For(tee)
	if err == nil {
		return nil
	}
	if tee == string(evidence.Sample) || tee == string(evidence.SampleDevice) {
		return &Refusal{
			Rule: "sample evidence allowed", Expected: "evidence from a real TEE: " + fmt.Sprint(s.Names()), Got: tee,
			Next: "run the guest in a TEE; for a test set-up only: set sample = true under [attestation] in coffer-kbs.toml and restart coffer-kbs",
			Err:  fmt.Errorf("sample evidence is not allowed by this service: %w", errdefs.ErrUnauthenticated),
		}
	}
	return &Refusal{
		Rule: "tee is supported", Expected: fmt.Sprint(s.Names()), Got: fmt.Sprintf("%.64s", tee),
		Next: "use a supported TEE, or a key broker that has a verifier for this one",
		Err:  err,
	}
}

// Appraise verifies and appraises what an attester of that TEE sent. h is
// the hash that the challenge selected. Evidence that is refused is a
// *Refusal of class errdefs.ErrUnauthenticated or ErrNotImplemented;
// malformed init-data is errdefs.ErrInvalidArgument.
func (s *Service) Appraise(ctx context.Context, tee string, h rcar.Hash, a rcar.Attestation) (Result, error) {
	if err := s.Check(tee); err != nil {
		return Result{}, err
	}
	if add := a.Evidence.Additional; add != "" && add != "{}" {
		return Result{}, &Refusal{
			Rule: "no additional evidence", Expected: "evidence of the CPU alone", Got: "additional_evidence",
			Next: "attest without additional devices",
			Err:  fmt.Errorf("additional evidence is not supported here: %w", errdefs.ErrNotImplemented),
		}
	}
	input, err := s.verify(ctx, tee, h, a)
	if err != nil {
		return Result{}, err
	}
	verdict, err := s.policy.Appraise(ctx, cpuPolicy, input)
	if errdefs.IsUnavailable(err) || errdefs.IsResourceExhausted(err) || ctx.Err() != nil {
		return Result{}, err
	}
	if err != nil {
		return Result{}, &Refusal{
			Rule: "attestation policy " + cpuPolicy + " can be evaluated", Expected: "trust claims", Got: err.Error(),
			Next: "correct the policy and set it again: coffer kbs attestation-policy set " + cpuPolicy + " FILE",
			Err:  err,
		}
	}
	status := verdict.Claims.Status()
	s.log.InfoContext(ctx, "appraised", "tee", tee, "status", status, "policy_digest", verdict.Digest)
	return Result{
		Submods: map[string]any{"cpu0": submod(verdict, status, input)},
		Status:  status, PolicyDigest: verdict.Digest,
	}, nil
}

// verify returns the input of the attestation policy.
func (s *Service) verify(ctx context.Context, tee string, h rcar.Hash, a rcar.Attestation) (map[string]any, error) {
	v, err := s.verifiers.For(tee)
	if err != nil {
		return nil, err
	}
	reportData, err := rcar.ReportData(h, a.RuntimeData, a.Evidence.Additional)
	if err != nil {
		return nil, fmt.Errorf("runtime-data: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	binding := verifier.Binding{ReportData: reportData}
	var initClaims any
	if a.InitData != nil {
		if binding.InitData, initClaims, err = parseInitData(*a.InitData); err != nil {
			return nil, fmt.Errorf("init-data: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	claims, err := v.Verify(ctx, a.Evidence.Primary, binding)
	if err != nil {
		if errdefs.IsUnavailable(err) {
			return nil, err
		}
		return nil, &Refusal{
			Rule: "evidence is genuine", Expected: tee + " evidence made for this challenge and key", Got: err.Error(),
			Next: "attest again; if it persists, the evidence was altered or its TEE is not what it says",
			Err:  err,
		}
	}
	input := map[string]any{tee: claims.TEE}
	if claims.ReportData != nil {
		input["report_data"] = claims.ReportData
		if input["runtime_data_claims"], err = runtimeClaims(a); err != nil {
			return nil, err
		}
	}
	if claims.InitData != nil {
		input["init_data"], input["init_data_claims"] = claims.InitData, initClaims
	}
	return input, nil
}

// runtimeClaims is the object whose digest the evidence carries.
func runtimeClaims(a rcar.Attestation) (map[string]any, error) {
	b, err := json.Marshal(a.RuntimeData)
	if err != nil {
		return nil, fmt.Errorf("runtime-data: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	var claims map[string]any
	if err := json.Unmarshal(b, &claims); err != nil {
		return nil, fmt.Errorf("runtime-data: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	claims["additional-evidence"] = a.Evidence.Additional
	return claims, nil
}

// submod builds one EAR appraisal.
func submod(v policy.Verdict, status string, input map[string]any) map[string]any {
	m := map[string]any{}
	for _, e := range v.Extensions {
		m[e.Name] = e.Value
	}
	vector := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(v.Claims)) {
		vector[name] = v.Claims[name]
	}
	m["ear.status"] = status
	m["ear.trustworthiness-vector"] = vector
	m["ear.appraisal-policy-id"] = "default"
	m["ear.coffer.appraisal-policy-digest"] = v.Digest
	m["ear.veraison.annotated-evidence"] = input
	if len(v.Findings) > 0 {
		m[policy.FindingsMember] = v.Findings
	}
	return m
}
