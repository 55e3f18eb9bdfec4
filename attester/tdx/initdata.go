// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/client/linuxabi"
)

const (
	configID     = "MRCONFIGID"
	configIDFile = "mrconfigid"
	configIDSize = 48
	// configIDAt is where a TDREPORT has it: in TDINFO, which begins at 512,
	// behind ATTRIBUTES, XFAM and MRTD.
	configIDAt = 512 + 8 + 8 + 48
	// reportType is the first byte of a TDREPORT.
	reportType = 0x81
)

// InitDataField is MRCONFIGID, from the kernel's measurements or else from a
// TDREPORT. Both come from the TDX module, through the guest's kernel. A quote
// would not do: it comes through the host, and here nobody checks its signature.
// The error is NotImplemented where the kernel offers neither.
func (a *Attester) InitDataField(context.Context) (name string, value []byte, err error) {
	value, err = a.measurements.ReadFile(configIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		value, err = a.configIDByReport()
	}
	if err == nil && len(value) != configIDSize {
		err = fmt.Errorf("it has %d bytes: %w", len(value), errdefs.ErrDataLoss)
	}
	if err != nil {
		return configID, nil, fmt.Errorf("read %s: %w", configID, err)
	}
	return configID, value, nil
}

// configIDByReport asks the TDX guest device, which kernels before 6.16 have.
func (a *Attester) configIDByReport() ([]byte, error) {
	device, err := a.openDevice()
	if err != nil {
		return nil, fmt.Errorf("this kernel offers neither the TDX guest's measurements (Linux 6.16 does) nor a TDREPORT: %w: %w",
			err, errdefs.ErrNotImplemented)
	}
	var req linuxabi.TdxReportReq
	result, err := device.Ioctl(linuxabi.IocTdxGetReport, &req)
	if err := errors.Join(err, device.Close()); err != nil {
		return nil, fmt.Errorf("TDREPORT: %w: %w", err, errdefs.ErrUnavailable)
	}
	if result != linuxabi.TdxAttestSuccess {
		return nil, fmt.Errorf("TDREPORT: the device answers %d: %w", result, errdefs.ErrUnavailable)
	}
	if req.TdReport[0] != reportType {
		return nil, fmt.Errorf("TDREPORT: it is of type %#x, not %#x: %w", req.TdReport[0], reportType, errdefs.ErrDataLoss)
	}
	return bytes.Clone(req.TdReport[configIDAt : configIDAt+configIDSize]), nil
}
