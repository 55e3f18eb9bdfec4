// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package verifier decides whether evidence is genuine: made by a TEE of the
// kind it claims to be, for this very request. Whether what it measures is
// acceptable is package appraisal's question. Evidence is hostile input.
package verifier

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Binding is what evidence must be bound to.
type Binding struct {
	// ReportData is the digest of the runtime data, not padded.
	ReportData []byte
	// InitData is the digest of the init-data, not padded; nil when the
	// attester sent none, and then nothing is compared.
	InitData []byte
}

// Claims are what genuine evidence says.
type Claims struct {
	// TEE holds the claims under the name of the TEE.
	TEE map[string]any
	// ReportData and InitData are the bound fields, in the TEE's own
	// notation; nil when the TEE has none.
	ReportData, InitData any
}

// Verifier checks the evidence of one kind of TEE. Evidence that is not
// genuine is errdefs.ErrUnauthenticated; that a verifier could not reach
// what it needs is errdefs.ErrUnavailable. It is safe for concurrent use and
// must not panic on any evidence.
type Verifier interface {
	Verify(ctx context.Context, evidence []byte, b Binding) (Claims, error)
}

// Set holds verifiers by the wire name of their TEE.
type Set map[string]Verifier

// Names lists the TEEs supported, sorted.
func (s Set) Names() []string { return slices.Sorted(maps.Keys(s)) }

// For returns the verifier of a TEE; for an unknown one the error is
// errdefs.ErrNotImplemented and names what there is.
func (s Set) For(tee string) (Verifier, error) {
	v, ok := s[tee]
	if !ok {
		return nil, fmt.Errorf("tee %.64q is not supported here; supported: %s: %w", tee, strings.Join(s.Names(), ", "), errdefs.ErrNotImplemented)
	}
	return v, nil
}
