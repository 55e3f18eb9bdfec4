// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package sample verifies evidence of the sample TEE, which has no hardware
// behind it and no signature: anybody can make it. It is for development. A
// Verifier is made explicitly and never used in place of another.
package sample

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs/verifier"
)

// Verifier implements verifier.Verifier. It checks that the evidence is bound
// to the request, and nothing else.
type Verifier struct{}

// Verify implements verifier.Verifier.
func (Verifier) Verify(_ context.Context, raw []byte, b verifier.Binding) (verifier.Claims, error) {
	e, err := evidence.ParseSample(raw)
	if err != nil {
		return verifier.Claims{}, fmt.Errorf("sample evidence: %w: %w", errdefs.ErrUnauthenticated, err)
	}
	if subtle.ConstantTimeCompare(e.ReportData, b.ReportData) != 1 {
		return verifier.Claims{}, fmt.Errorf("sample evidence: report_data is not bound to this nonce and tee-pubkey: %w", errdefs.ErrUnauthenticated)
	}
	claims := verifier.Claims{
		TEE: map[string]any{
			"svn":              e.SVN,
			"launch_digest":    "abcde",
			"platform_version": map[string]any{"major": 1, "minor": 4},
			"debug":            false,
		},
		ReportData: base64.StdEncoding.EncodeToString(e.ReportData),
	}
	if b.InitData != nil {
		claims.InitData = base64.StdEncoding.EncodeToString(b.InitData)
	}
	return claims, nil
}

// ReferenceValues are the reference values under which the default
// attestation policy affirms what the sample attester sends.
func ReferenceValues() map[string]any {
	return map[string]any{
		"launch_digest":         []string{"abcde"},
		"svn":                   []string{"1"},
		"major_version":         1,
		"minimum_minor_version": 4,
	}
}
