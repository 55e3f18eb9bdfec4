// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package attester is the Attestation Agent: it finds the TEE this machine is
// and has it sign report data, so that a verifier elsewhere can judge it.
//
// It runs inside the TEE and trusts its callers there. It does not attest by
// itself: the Key Broker Service's client does, with this package's evidence.
// It imports no RPC and no key service client.
package attester

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/eventlog"
	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/sample"
	"github.com/coffer-cc/coffer/attester/tdx"
)

// Auto names whatever TEE this machine is.
const Auto = "auto"

// Attester has one TEE give evidence about itself. An [Agent] makes one call at
// a time.
type Attester interface {
	// TEE is the TEE's name in the attestation protocol; see attester/evidence.
	TEE() string
	// Evidence returns the TEE's evidence, JSON, over at most 64 bytes of
	// report data.
	Evidence(ctx context.Context, reportData []byte) ([]byte, error)
}

// Options are the settings of detection; the zero value is the default.
type Options struct {
	// TDX says where the machine's TDX interfaces are.
	TDX tdx.Options
	// Logger gets the warning that the sample TEE protects nothing. Nil
	// discards.
	Logger *slog.Logger
}

// Detect returns the attester of a TEE by name: "auto", or a name of
// attester/evidence. Auto looks for real TEEs only and never returns sample. The
// error is NotFound where this machine is no such TEE, NotImplemented where there
// is no attester for it, and InvalidArgument for names nobody knows.
func Detect(name string, opts Options) (Attester, error) {
	switch name {
	case Auto:
		a, err := tdx.Open(opts.TDX)
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil, fmt.Errorf("find a TEE: looked for %s: %w; run this in a confidential VM, or, for development "+
				"without any protection, set the TEE to %q", evidence.TDX, err, evidence.Sample)
		}
		if err != nil {
			return nil, fmt.Errorf("find a TEE: %w", err)
		}
		return a, nil
	case string(evidence.TDX):
		a, err := tdx.Open(opts.TDX)
		if err != nil {
			return nil, fmt.Errorf("open TEE %s: %w", name, err)
		}
		return a, nil
	case string(evidence.Sample):
		return sample.New(opts.Logger), nil
	}
	if evidence.TEE(name).Known() {
		return nil, fmt.Errorf("%w: no attester for TEE %q; there are %q and %q",
			errdefs.ErrNotImplemented, name, evidence.TDX, evidence.Sample)
	}
	return nil, fmt.Errorf("%w: unknown TEE %.32q; use %q, %q or %q",
		errdefs.ErrInvalidArgument, name, Auto, evidence.TDX, evidence.Sample)
}

// Agent shares one attester among callers. It is safe for concurrent use and is
// the evidence source of the Key Broker Service's client.
type Agent struct {
	attester Attester
	turn     chan struct{} // holds a token while the attester works
	log      *eventlog.Log // nil until OpenEventLog
	// noRegisters is why OpenEventLog found none, nil if it did not.
	noRegisters error
}

// NewAgent returns an agent over a.
func NewAgent(a Attester) *Agent {
	return &Agent{attester: a, turn: make(chan struct{}, 1)}
}

// TEE is the TEE's name in the attestation protocol.
func (a *Agent) TEE() string { return a.attester.TEE() }

// Evidence returns the TEE's evidence, JSON, over at most 64 bytes of report
// data. Calls take turns, since the interfaces of TEEs are made for one at a
// time; one that waits gives up when ctx ends.
func (a *Agent) Evidence(ctx context.Context, reportData []byte) ([]byte, error) {
	if len(reportData) == 0 || len(reportData) > evidence.MaxReportData {
		return nil, fmt.Errorf("%w: report data has %d bytes; give between 1 and %d",
			errdefs.ErrInvalidArgument, len(reportData), evidence.MaxReportData)
	}
	if err := a.lock(ctx); err != nil {
		return nil, err
	}
	defer a.unlock()
	return a.attester.Evidence(ctx, reportData)
}

func (a *Agent) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the TEE: %w", ctx.Err())
	}
}

func (a *Agent) unlock() { <-a.turn }
