// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/client"
	"github.com/google/go-tdx-guest/client/linuxabi"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/tdx"
)

// reporter is a TDX guest device whose TDREPORT has each byte of MRCONFIGID
// where Intel's TDX module specification puts it, and 0xee elsewhere.
type reporter struct {
	kind     byte
	configID []byte
	result   uintptr
	err      error
	opened   *int
}

func (r *reporter) Open(string) error { return nil }

func (r *reporter) Close() error {
	*r.opened--
	return nil
}

func (r *reporter) Ioctl(_ uintptr, argument any) (uintptr, error) {
	req, ok := argument.(*linuxabi.TdxReportReq)
	if !ok {
		return 0, errors.New("only reports")
	}
	for i := range req.TdReport {
		req.TdReport[i] = 0xee
	}
	req.TdReport[0] = r.kind
	copy(req.TdReport[576:624], r.configID)
	return r.result, r.err
}

func TestCheckInitData(t *testing.T) {
	t.Parallel()
	sum := sha512.Sum384([]byte("document"))
	long := sha512.Sum512([]byte("document"))
	other := bytes.Clone(sum[:])
	other[47] ^= 1
	short := append(bytes.Clone(sum[:32]), make([]byte, 16)...)
	for name, tc := range map[string]struct {
		field, digest []byte
		want          string // "" is nil
	}{
		"same":               {sum[:], sum[:], ""},
		"longer digest":      {long[:48], long[:], ""},
		"shorter digest":     {short, sum[:32], ""},
		"differs at the end": {other, sum[:], "it was launched with another one"},
		"not padded with 0":  {sum[:], sum[:32], "it was launched with another one"},
		"zeros":              {make([]byte, 48), sum[:], "launched without init-data"},
	} {
		registers := newMeasurements()
		registers["mrconfigid"] = tc.field
		var opened int
		for way, opts := range map[string]tdx.Options{
			"sysfs": {Measurements: registers, OpenDevice: noDevice},
			"device": {Measurements: newMeasurements(), OpenDevice: func() (client.Device, error) {
				opened++
				return &reporter{kind: 0x81, configID: tc.field, opened: &opened}, nil
			}},
		} {
			opts.TSM, _ = tsm("tdx_guest\n")
			a, err := tdx.Open(opts)
			if err != nil {
				t.Fatal(err)
			}
			err = attester.NewAgent(a).CheckInitData(t.Context(), tc.digest)
			if tc.want == "" && err != nil || tc.want != "" && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "MRCONFIGID")) {
				t.Errorf("%s by %s: error %v, want %q", name, way, err, tc.want)
			}
		}
		if opened != 0 {
			t.Errorf("%s: %d devices are left open", name, opened)
		}
	}
}

// What cannot be read is never a match.
func TestInitDataFieldFails(t *testing.T) {
	t.Parallel()
	odd := newMeasurements()
	odd["mrconfigid"] = make([]byte, 32)
	var opened int
	open := func(r reporter) func() (client.Device, error) {
		return func() (client.Device, error) {
			opened++
			r.opened = &opened
			return &r, nil
		}
	}
	for name, tc := range map[string]struct {
		opts tdx.Options
		is   func(error) bool
	}{
		"no interface":      {tdx.Options{Measurements: newMeasurements(), OpenDevice: noDevice}, errdefs.IsNotImplemented},
		"odd size":          {tdx.Options{Measurements: odd, OpenDevice: noDevice}, errdefs.IsDataLoss},
		"ioctl":             {tdx.Options{Measurements: newMeasurements(), OpenDevice: open(reporter{kind: 0x81, err: errors.New("EIO")})}, errdefs.IsUnavailable},
		"answer of failure": {tdx.Options{Measurements: newMeasurements(), OpenDevice: open(reporter{kind: 0x81, result: 9})}, errdefs.IsUnavailable},
		"another report":    {tdx.Options{Measurements: newMeasurements(), OpenDevice: open(reporter{kind: 0})}, errdefs.IsDataLoss},
	} {
		tc.opts.TSM, _ = tsm("tdx_guest\n")
		a, err := tdx.Open(tc.opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := attester.NewAgent(a).CheckInitData(t.Context(), make([]byte, 48)); !tc.is(err) || !strings.Contains(err.Error(), "MRCONFIGID") {
			t.Errorf("%s: error %v", name, err)
		}
		if opened != 0 {
			t.Errorf("%s: %d devices are left open", name, opened)
		}
	}
}

func TestCheckInitDataWithoutField(t *testing.T) {
	t.Parallel()
	a, err := attester.Detect("sample", attester.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := attester.NewAgent(a).CheckInitData(t.Context(), make([]byte, 32)); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "sample") {
		t.Errorf("error %v", err)
	}
}
