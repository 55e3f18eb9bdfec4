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
	"github.com/coffer-cc/coffer/imagepull"
)

// The event of a pull, as verifiers know it.
const (
	eventDomain    = "github.com/confidential-containers"
	eventOperation = "PullImage"
)

// eventLog begins the log of runtime events, where the TEE can have one.
func (g *guest) eventLog(ctx context.Context, conf Config, agent *attester.Agent) error {
	if conf.Attester.Measure == measureOff {
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
	return nil
}

// pulls measures them as events of the agent.
type pulls struct {
	agent    aaservice.EvidenceSource
	required bool
}

// measurer is nil where nothing is to be measured.
func measurer(conf Config, agent aaservice.EvidenceSource) imagepull.Measurer {
	if conf.Attester.Measure == measureOff {
		return nil
	}
	return pulls{agent: agent, required: conf.Attester.Measure == measureRequired}
}

// Measure extends the default register. A TEE without registers is no error,
// unless measuring is required.
func (p pulls) Measure(ctx context.Context, event []byte) error {
	err := p.agent.Measure(ctx, eventlog.Event{Domain: eventDomain, Operation: eventOperation, Content: string(event)}, eventlog.DefaultPCR)
	if !p.required && errdefs.IsNotImplemented(err) {
		return nil
	}
	return err
}
