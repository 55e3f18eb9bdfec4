// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/eventlog"
	aaservice "github.com/coffer-cc/coffer/attester/service"
	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/kbs"
)

// unable stands in for what this machine or its configuration lacks. It
// answers every request with the reason, so that all that does not need the
// missing part works.
type unable struct {
	reason error
}

var (
	_ kbs.EvidenceSource       = unable{}
	_ cdh.ResourceGetter       = unable{}
	_ aaservice.EvidenceSource = unable{}
	_ aaservice.TokenSource    = unable{}
)

// TEE returns "": there is none.
func (unable) TEE() string { return "" }

// Evidence returns the reason.
func (u unable) Evidence(context.Context, []byte) ([]byte, error) { return nil, u.reason }

// Measure says that there are no registers.
func (unable) Measure(context.Context, eventlog.Event, uint64) error {
	return fmt.Errorf("no TEE, no registers: %w", errdefs.ErrNotImplemented)
}

// GetResource returns the reason.
func (u unable) GetResource(context.Context, string) ([]byte, error) { return nil, u.reason }

// AgentToken returns the reason.
func (u unable) AgentToken(context.Context, string) ([]byte, error) { return nil, u.reason }
