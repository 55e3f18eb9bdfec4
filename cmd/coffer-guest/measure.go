// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/eventlog"
	aaservice "github.com/coffer-cc/coffer/attester/service"
)

// The event of a pull, as verifiers know it.
const (
	eventDomain    = "github.com/confidential-containers"
	eventOperation = "PullImage"
)

// openEventLog begins the log of runtime events, where the TEE can have one.
// Pulls are measured where it is open.
func (g *guest) openEventLog(ctx context.Context, conf Config, tee aaservice.EvidenceSource) error {
	if conf.Attester.Measure == measureOff {
		return nil
	}
	agent, ok := tee.(*attester.Agent)
	if !ok {
		if conf.Attester.Measure == measureRequired {
			return fmt.Errorf("attester.measure: %q, but there is no TEE: %w", measureRequired, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	err := agent.OpenEventLog(conf.Attester.EventLog)
	if errdefs.IsNotImplemented(err) && conf.Attester.Measure == measureAuto {
		g.log.InfoContext(ctx, "pulls are not measured", "tee", agent.TEE(), "reason", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("attester.measure: %w", err)
	}
	g.measurer = pulls{agent}
	return nil
}

// pulls measures them as events of the agent.
type pulls struct{ agent *attester.Agent }

// Measure extends the default register.
func (p pulls) Measure(ctx context.Context, event []byte) error {
	return p.agent.Measure(ctx, eventlog.Event{Domain: eventDomain, Operation: eventOperation, Content: string(event)}, eventlog.DefaultPCR)
}
