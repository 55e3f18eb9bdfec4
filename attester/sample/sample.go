// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package sample is an attester without a TEE, for development. Its evidence
// can be made by anybody and protects nothing; key services refuse it unless
// they are told otherwise.
package sample

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/coffer-cc/coffer/attester/evidence"
)

// svn is the security version that verifiers of sample evidence expect.
const svn = "1"

// Attester gives sample evidence.
type Attester struct{}

// New returns a sample attester and warns, on logger, that it protects nothing.
// Nil discards the warning.
func New(logger *slog.Logger) *Attester {
	if logger != nil {
		logger.Warn("sample TEE: no protection", slog.String("tee", string(evidence.Sample)))
	}
	return &Attester{}
}

// TEE is [evidence.Sample].
func (*Attester) TEE() string { return string(evidence.Sample) }

// Evidence returns the JSON of an [evidence.SampleEvidence].
func (*Attester) Evidence(_ context.Context, reportData []byte) ([]byte, error) {
	b, err := json.Marshal(evidence.SampleEvidence{SVN: svn, ReportData: reportData})
	if err != nil {
		return nil, fmt.Errorf("marshal sample evidence: %w", err)
	}
	return b, nil
}
