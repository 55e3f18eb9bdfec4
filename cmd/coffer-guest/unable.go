// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/kbs"

	aaservice "github.com/coffer-cc/coffer/attester/service"
)

// unable stands in for what this machine or its configuration lacks. It
// answers every request with the reason, so that all that does not need the
// missing part works.
type unable struct {
	reason error
}

var (
	_ kbs.EvidenceSource    = unable{}
	_ cdh.ResourceGetter    = unable{}
	_ aaservice.TokenSource = unable{}
)

// TEE returns "": there is none.
func (unable) TEE() string { return "" }

// Evidence returns the reason.
func (u unable) Evidence(context.Context, []byte) ([]byte, error) { return nil, u.reason }

// GetResource returns the reason.
func (u unable) GetResource(context.Context, string) ([]byte, error) { return nil, u.reason }

// AgentToken returns the reason.
func (u unable) AgentToken(context.Context, string) ([]byte, error) { return nil, u.reason }
