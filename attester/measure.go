// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package attester

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/eventlog"
)

// Measurer is an attester whose TEE has runtime measurement registers, and whose
// evidence has the event log of a directory beside the firmware's.
type Measurer interface {
	Attester
	eventlog.Registers
	// SetEventLog names the source of the log's entries. It is called at most
	// once, before the first evidence.
	SetEventLog(entries func() ([]byte, error))
}

// OpenEventLog begins, or goes on with, the log of runtime events in dir. Call
// it at most once, before the agent is used. The error is NotImplemented where
// the TEE or the kernel has no registers, else that of [eventlog.Open].
func (a *Agent) OpenEventLog(dir string) error {
	m, ok := a.attester.(Measurer)
	if !ok {
		return fmt.Errorf("TEE %s has no runtime measurement registers: %w", a.TEE(), errdefs.ErrNotImplemented)
	}
	if _, err := m.ReadRegister(m.Register(eventlog.DefaultPCR)); err != nil {
		if errdefs.IsNotImplemented(err) {
			a.noRegisters = err
		}
		return err
	}
	log, err := eventlog.Open(dir, m)
	if err != nil {
		return err
	}
	m.SetEventLog(log.Entries)
	a.log = log
	return nil
}

// Measure extends the register that stands for pcr with an event and logs it.
// No evidence is made in between, so that register and log agree in each. The
// error is NotImplemented where the TEE has no registers, and FailedPrecondition
// where there is no event log.
func (a *Agent) Measure(ctx context.Context, e eventlog.Event, pcr uint64) error {
	if a.noRegisters != nil {
		return a.noRegisters
	}
	if a.log == nil {
		if _, ok := a.attester.(Measurer); !ok {
			return fmt.Errorf("TEE %s has no runtime measurement registers: %w", a.TEE(), errdefs.ErrNotImplemented)
		}
		return fmt.Errorf("there is no event log: switch it on: %w", errdefs.ErrFailedPrecondition)
	}
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	return a.log.Extend(e, pcr)
}
