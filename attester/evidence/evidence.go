// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package evidence is the wire form of the evidence a TEE gives about itself,
// as the Attestation Agent emits it and a verifier reads it.
//
// It is a contract leaf: both sides of the wire import it and it imports only
// the standard library. Parsing says that the bytes have the right shape,
// nothing about whether they are genuine; that is the verifier's verdict.
package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// TEE is the name of a kind of TEE, as it travels in the RCAR request.
type TEE string

// The names of the Key Broker Service's attestation protocol.
const (
	AzureSNP     TEE = "az-snp-vtpm"
	AzureTDX     TEE = "az-tdx-vtpm"
	CCA          TEE = "cca"
	CSV          TEE = "csv"
	HygonDCU     TEE = "hygondcu"
	NVIDIA       TEE = "nvidia"
	SE           TEE = "se"
	SGX          TEE = "sgx"
	SNP          TEE = "snp"
	Sample       TEE = "sample"
	SampleDevice TEE = "sampledevice"
	TDX          TEE = "tdx"
	TPM          TEE = "tpm"
)

// Known reports whether t is a name that the attestation protocol has.
func (t TEE) Known() bool {
	switch t {
	case AzureSNP, AzureTDX, CCA, CSV, HygonDCU, NVIDIA, SE, SGX, SNP, Sample, SampleDevice, TDX, TPM:
		return true
	}
	return false
}

// MaxReportData is the size in bytes of the report data a TEE binds into its
// evidence. Shorter report data is padded with zero bytes on the right.
const MaxReportData = 64

// MaxSize bounds one TEE's evidence, in bytes of JSON.
const MaxSize = 1 << 20

// ErrMalformed is wrapped by every error of this package.
var ErrMalformed = errors.New("malformed evidence")

// SampleEvidence is the evidence of the sample TEE. Anybody can make it: it
// proves nothing and is for development only.
type SampleEvidence struct {
	SVN        string `json:"svn"`
	ReportData []byte `json:"report_data"`
}

// TDXEvidence is the evidence of an Intel TDX guest.
type TDXEvidence struct {
	// CCEventLog is the event log of firmware (CCEL) and runtime (AAEL), nil where
	// the guest has none.
	CCEventLog []byte `json:"cc_eventlog"`
	// Quote is the signed TD quote, as the quoting enclave returned it.
	Quote []byte `json:"quote"`
}

// ParseSample reads sample evidence. Unknown members are ignored; the report
// data must be there and at most [MaxReportData] bytes long.
func ParseSample(b []byte) (SampleEvidence, error) {
	var e SampleEvidence
	if err := decode(b, &e); err != nil {
		return SampleEvidence{}, fmt.Errorf("parse sample evidence: %w", err)
	}
	switch {
	case e.SVN == "":
		return SampleEvidence{}, fmt.Errorf("parse sample evidence: %w: no svn", ErrMalformed)
	case len(e.ReportData) == 0:
		return SampleEvidence{}, fmt.Errorf("parse sample evidence: %w: no report_data", ErrMalformed)
	case len(e.ReportData) > MaxReportData:
		return SampleEvidence{}, fmt.Errorf("parse sample evidence: %w: report_data has %d bytes, at most %d are allowed",
			ErrMalformed, len(e.ReportData), MaxReportData)
	}
	return e, nil
}

// ParseTDX reads TDX evidence. Unknown members are ignored; the quote must be
// there. Neither the quote nor the event log is looked into.
func ParseTDX(b []byte) (TDXEvidence, error) {
	var e TDXEvidence
	if err := decode(b, &e); err != nil {
		return TDXEvidence{}, fmt.Errorf("parse tdx evidence: %w", err)
	}
	if len(e.Quote) == 0 {
		return TDXEvidence{}, fmt.Errorf("parse tdx evidence: %w: no quote", ErrMalformed)
	}
	return e, nil
}

// decode reads one JSON object. The decoder's own error is not passed on: it
// can hold bytes of the evidence.
func decode(b []byte, into any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(b), MaxSize)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) {
		return fmt.Errorf("%w: not a JSON object", ErrMalformed)
	}
	err := json.Unmarshal(b, into)
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrongType):
		return fmt.Errorf("%w: member %s has the wrong type", ErrMalformed, wrongType.Field)
	default:
		return fmt.Errorf("%w: not valid JSON, or a member is not base64", ErrMalformed)
	}
}
