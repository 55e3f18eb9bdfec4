// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"crypto/sha512"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/eventlog"
	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/tdx"
)

// measurements are registers as the kernel has them: writing extends.
type measurements map[string][]byte

func (m measurements) ReadFile(name string) ([]byte, error) {
	b, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(b), nil
}

func (m measurements) WriteFile(name string, b []byte) error {
	is, ok := m[name]
	if !ok {
		return fs.ErrNotExist
	}
	next := sha512.Sum384(append(bytes.Clone(is), b...))
	m[name] = next[:]
	return nil
}

func newMeasurements() measurements {
	m := make(measurements)
	for _, name := range []string{"rtmr0:sha384", "rtmr1:sha384", "rtmr2:sha384", "rtmr3:sha384"} {
		m[name] = make([]byte, sha512.Size384)
	}
	return m
}

// The log in the evidence replays to the registers, for the register asked for.
func TestMeasuredEventsAreInTheEvidence(t *testing.T) {
	t.Parallel()
	fake, _ := tsm("tdx_guest\n")
	registers := newMeasurements()
	a, err := tdx.Open(tdx.Options{TSM: fake, EventLog: filepath.Join(t.TempDir(), "absent"), Measurements: registers})
	if err != nil {
		t.Fatal(err)
	}
	agent := attester.NewAgent(a)
	event := eventlog.Event{Domain: "d", Operation: "PullImage", Content: "{}"}
	if err := agent.Measure(t.Context(), event, eventlog.DefaultPCR); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a log: got error %v, want a failed precondition", err)
	}
	if err := agent.OpenEventLog(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for _, pcr := range []uint64{eventlog.DefaultPCR, 8, eventlog.DefaultPCR, 2, 1} {
		if err := agent.Measure(t.Context(), event, pcr); err != nil {
			t.Fatal(err)
		}
	}
	b, err := agent.Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.ParseTDX(b)
	if err != nil {
		t.Fatal(err)
	}
	replayed, err := eventlog.Replay(e.CCEventLog, a.RegisterHash())
	if err != nil {
		t.Fatal(err)
	}
	for register, name := range map[uint32]string{1: "rtmr0:sha384", 2: "rtmr1:sha384", 3: "rtmr2:sha384", 4: "rtmr3:sha384"} {
		if !bytes.Equal(replayed[register], registers[name]) {
			t.Errorf("%s is %x, and the log replays to %x", name, registers[name], replayed[register])
		}
	}
}

func TestKernelWithoutRegisters(t *testing.T) {
	t.Parallel()
	fake, _ := tsm("tdx_guest\n")
	a, err := tdx.Open(tdx.Options{TSM: fake, Measurements: measurements{}})
	if err != nil {
		t.Fatal(err)
	}
	agent := attester.NewAgent(a)
	if err := agent.OpenEventLog(t.TempDir()); !errdefs.IsNotImplemented(err) {
		t.Errorf("got error %v, want not implemented", err)
	}
	if err := agent.Measure(t.Context(), eventlog.Event{Domain: "d", Operation: "o"}, eventlog.DefaultPCR); !errdefs.IsNotImplemented(err) {
		t.Errorf("got error %v, want not implemented", err)
	}
	if _, err := a.ReadRegister(0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got error %v, want invalid argument", err)
	}
	if err := a.ExtendRegister(4, make([]byte, 32)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got error %v, want invalid argument", err)
	}
}
