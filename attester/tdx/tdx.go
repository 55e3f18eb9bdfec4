// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package tdx is the attester of an Intel TDX guest: it has the quoting enclave
// sign the report data, through the kernel's configfs-TSM interface or, where a
// kernel lacks that, through the TDX guest device.
//
// It runs inside the TEE. The host carries the request to the quoting enclave
// and can refuse or garble it; whether a quote is genuine is the verifier's
// verdict, not this package's.
package tdx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
	"github.com/google/go-tdx-guest/client"

	"github.com/coffer-cc/coffer/attester/eventlog"
	"github.com/coffer-cc/coffer/attester/evidence"
)

const (
	tsmProvider     = "tdx_guest\n"
	defaultEventLog = "/sys/firmware/acpi/tables/data/CCEL"

	// maxFirmwareLog bounds the boot event log in bytes, with the padding up to
	// what firmware reserves, which is between 64 KiB and 1 MiB. maxEventLog is
	// for what goes into the evidence.
	maxFirmwareLog = 4 << 20
	maxEventLog    = 512 << 10
)

// Options say where the machine's TDX interfaces are; the zero value is this
// kernel's.
type Options struct {
	// TSM is the configfs-TSM tree. Nil means the kernel's.
	TSM configfsi.Client
	// OpenDevice opens the TDX guest device, which is asked where TSM has no
	// TDX provider, or Measurements no MRCONFIGID. Nil means /dev/tdx_guest.
	OpenDevice func() (client.Device, error)
	// EventLog is the file of the boot event log. Empty means the ACPI CCEL
	// table. A file that is absent or not readable means no event log.
	EventLog string
	// Measurements are the guest's registers. Nil means the kernel's.
	Measurements Measurements
}

// Attester gives TDX evidence. It serves one call at a time.
type Attester struct {
	quote        func(reportData [evidence.MaxReportData]byte) ([]byte, error)
	eventLog     string
	entries      func() ([]byte, error) // of the runtime log; nil without one
	measurements Measurements
	openDevice   func() (client.Device, error)
}

// Open finds the machine's TDX interface. The error is NotFound where there is
// none, and says what was looked for.
func Open(opts Options) (*Attester, error) {
	a := &Attester{eventLog: opts.EventLog, measurements: opts.Measurements, openDevice: opts.OpenDevice}
	if a.eventLog == "" {
		a.eventLog = defaultEventLog
	}
	if a.measurements == nil {
		a.measurements = sysfs{measurementsDir}
	}
	if a.openDevice == nil {
		a.openDevice = openKernelDevice
	}
	tsm, tsmErr := openTSM(opts.TSM)
	if tsmErr == nil {
		a.quote = func(d [evidence.MaxReportData]byte) ([]byte, error) { return quoteByTSM(tsm, d) }
		return a, nil
	}
	device, deviceErr := a.openDevice()
	if deviceErr != nil {
		return nil, fmt.Errorf("%w: no TDX interface: %w; %w", errdefs.ErrNotFound, tsmErr, deviceErr)
	}
	if err := device.Close(); err != nil {
		return nil, fmt.Errorf("close TDX guest device: %w", err)
	}
	a.quote = func(d [evidence.MaxReportData]byte) ([]byte, error) { return quoteByDevice(a.openDevice, d) }
	return a, nil
}

// TEE is [evidence.TDX].
func (*Attester) TEE() string { return string(evidence.TDX) }

// Evidence returns the JSON of an [evidence.TDXEvidence] whose quote holds
// reportData, padded with zero bytes on the right. It does not look at ctx: the
// kernel's interface cannot be interrupted and has its own time limit.
func (a *Attester) Evidence(_ context.Context, reportData []byte) ([]byte, error) {
	if len(reportData) > evidence.MaxReportData {
		return nil, fmt.Errorf("%w: report data has %d bytes, a TDX quote holds %d",
			errdefs.ErrInvalidArgument, len(reportData), evidence.MaxReportData)
	}
	var padded [evidence.MaxReportData]byte
	copy(padded[:], reportData)
	quote, err := a.quote(padded)
	if err != nil {
		return nil, fmt.Errorf("get TDX quote (%w): %w; check that configfs is mounted at "+
			"/sys/kernel/config and that the host runs the quote generation service",
			errdefs.ErrUnavailable, err)
	}
	eventLog, err := a.events()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(evidence.TDXEvidence{CCEventLog: eventLog, Quote: quote})
	if err != nil {
		return nil, fmt.Errorf("marshal TDX evidence: %w", err)
	}
	return b, nil
}

// openTSM returns the configfs tree if its provider is TDX.
func openTSM(tsm configfsi.Client) (configfsi.Client, error) {
	if tsm == nil {
		var err error
		if tsm, err = linuxtsm.MakeClient(); err != nil {
			return nil, fmt.Errorf("configfs-TSM: %w", err)
		}
	}
	r, err := report.CreateOpenReport(tsm)
	if err != nil {
		return nil, fmt.Errorf("configfs-TSM: %w", err)
	}
	provider, err := r.ReadOption("provider")
	if err := errors.Join(err, r.Destroy()); err != nil {
		return nil, fmt.Errorf("configfs-TSM: %w", err)
	}
	if string(provider) != tsmProvider {
		return nil, fmt.Errorf("configfs-TSM: provider is %.32q, not %q", provider, tsmProvider)
	}
	return tsm, nil
}

func quoteByTSM(tsm configfsi.Client, reportData [evidence.MaxReportData]byte) ([]byte, error) {
	r, err := report.Create(tsm, &report.Request{InBlob: reportData[:]})
	if err != nil {
		return nil, fmt.Errorf("configfs-TSM: %w", err)
	}
	resp, err := r.Get()
	if err := errors.Join(err, r.Destroy()); err != nil {
		return nil, fmt.Errorf("configfs-TSM: %w", err)
	}
	return resp.OutBlob, nil
}

func openKernelDevice() (client.Device, error) {
	return client.OpenDevice()
}

func quoteByDevice(open func() (client.Device, error), reportData [evidence.MaxReportData]byte) ([]byte, error) {
	device, err := open()
	if err != nil {
		return nil, err
	}
	quote, err := client.GetRawQuote(device, reportData)
	if err := errors.Join(err, device.Close()); err != nil {
		return nil, fmt.Errorf("TDX guest device: %w", err)
	}
	return quote, nil
}

// events is the firmware's log and the runtime's in one.
func (a *Attester) events() ([]byte, error) {
	firmware, err := readEventLog(a.eventLog)
	if err != nil {
		return nil, err
	}
	var entries []byte
	if a.entries != nil {
		if entries, err = a.entries(); err != nil {
			return nil, err
		}
	}
	log, err := eventlog.Join(firmware, entries)
	if err == nil && len(log) > maxEventLog {
		return nil, fmt.Errorf("%w: the event log has %d bytes, more than the %d that evidence holds", errdefs.ErrOutOfRange, len(log), maxEventLog)
	}
	return log, err
}

// readEventLog returns nil where there is no readable event log: older firmware
// has none, and the verifier decides whether it can do without.
func readEventLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFirmwareLog+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read boot event log: %w", err)
	case len(b) > maxFirmwareLog:
		return nil, fmt.Errorf("%w: boot event log %s has more than %d bytes", errdefs.ErrOutOfRange, path, maxFirmwareLog)
	case len(b) == 0:
		return nil, nil
	}
	return b, nil
}
