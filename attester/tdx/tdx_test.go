// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-tdx-guest/client"
	"github.com/google/go-tdx-guest/client/linuxabi"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/attester/tdx"
)

// tsm is a configfs-TSM tree whose quotes are "quote:" and the report data.
func tsm(provider string) (configfsi.Client, *faketsm.ReportSubsystem) {
	reports := faketsm.Report611(0)
	makeEntry := reports.MakeEntry
	reports.MakeEntry = func() *faketsm.ReportEntry {
		e := makeEntry()
		e.ROAttrs = map[string][]byte{"provider": []byte(provider)}
		return e
	}
	reports.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(provider), nil
		case "outblob":
			return append([]byte("quote:"), e.InAttrs["inblob"].Value...), nil
		}
		return nil, os.ErrNotExist
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": reports}}, reports
}

// device is a TDX guest device whose quotes are "device:" and the report data.
type device struct {
	reportData []byte
	busy       bool
	opened     *int
}

func (d *device) Open(string) error { return nil }

func (d *device) Close() error {
	*d.opened--
	return nil
}

func (d *device) Ioctl(_ uintptr, argument any) (uintptr, error) {
	switch req := argument.(type) {
	case *linuxabi.TdxReportReq:
		d.reportData = bytes.Clone(req.ReportData[:])
	case *linuxabi.TdxQuoteReq:
		header, ok := req.Buffer.(*linuxabi.TdxQuoteHdr)
		if !ok || d.busy {
			return 0, errors.New("device busy")
		}
		header.OutLen = uint32(copy(header.Data[:], append([]byte("device:"), d.reportData...)))
	}
	return 0, nil
}

func noDevice() (client.Device, error) { return nil, errors.New("no device here") }

func padded(b []byte) []byte {
	return append(bytes.Clone(b), make([]byte, evidence.MaxReportData-len(b))...)
}

// firmwareLog is a header and no entry.
func firmwareLog() []byte {
	log := make([]byte, 8+20+4)
	log[4] = 3
	return log
}

func TestQuoteByTSM(t *testing.T) {
	t.Parallel()
	fake, reports := tsm("tdx_guest\n")
	eventLog := filepath.Join(t.TempDir(), "CCEL")
	events := firmwareLog()
	if err := os.WriteFile(eventLog, append(bytes.Clone(events), make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := tdx.Open(tdx.Options{TSM: fake, OpenDevice: noDevice, EventLog: eventLog})
	if err != nil {
		t.Fatal(err)
	}
	if a.TEE() != "tdx" {
		t.Errorf("got TEE %q", a.TEE())
	}
	for _, reportData := range [][]byte{bytes.Repeat([]byte{7}, 48), bytes.Repeat([]byte{8}, 64)} {
		b, err := a.Evidence(t.Context(), reportData)
		if err != nil {
			t.Fatal(err)
		}
		got, err := evidence.ParseTDX(b)
		if err != nil {
			t.Fatal(err)
		}
		want := evidence.TDXEvidence{CCEventLog: append(bytes.Clone(events), bytes.Repeat([]byte{0xff}, 8)...), Quote: append([]byte("quote:"), padded(reportData)...)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("evidence (-want +got):\n%s", diff)
		}
	}
	if n := len(reports.Entries); n != 0 {
		t.Errorf("%d report entries are left", n)
	}
	if _, err := a.Evidence(t.Context(), make([]byte, 65)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got error %v, want invalid argument", err)
	}
}

func TestQuoteByDevice(t *testing.T) {
	t.Parallel()
	fake, _ := tsm("sev_guest\n")
	var opened int
	d := &device{opened: &opened}
	a, err := tdx.Open(tdx.Options{
		TSM:        fake,
		OpenDevice: func() (client.Device, error) { opened++; return d, nil },
		EventLog:   filepath.Join(t.TempDir(), "absent"),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(`"cc_eventlog":null`)) {
		t.Errorf("an absent event log is not null")
	}
	got, err := evidence.ParseTDX(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]byte("device:"), padded([]byte("data"))...), got.Quote); diff != "" {
		t.Errorf("quote (-want +got):\n%s", diff)
	}
	d.busy = true
	if _, err := a.Evidence(t.Context(), []byte("data")); !errdefs.IsUnavailable(err) {
		t.Errorf("got error %v, want unavailable", err)
	}
	if opened != 0 {
		t.Errorf("%d devices are left open", opened)
	}
}

func TestNoTDX(t *testing.T) {
	t.Parallel()
	fake, reports := tsm("sev_guest\n")
	_, err := tdx.Open(tdx.Options{TSM: fake, OpenDevice: noDevice})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "sev_guest") || !strings.Contains(err.Error(), "no device here") {
		t.Errorf("got error %v", err)
	}
	if n := len(reports.Entries); n != 0 {
		t.Errorf("%d report entries are left", n)
	}
}

func TestEventLogTooLong(t *testing.T) {
	t.Parallel()
	fake, _ := tsm("tdx_guest\n")
	eventLog := filepath.Join(t.TempDir(), "CCEL")
	if err := os.WriteFile(eventLog, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := tdx.Open(tdx.Options{TSM: fake, EventLog: eventLog})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Evidence(t.Context(), []byte("data")); !errdefs.IsOutOfRange(err) {
		t.Errorf("got error %v, want out of range", err)
	}
}
