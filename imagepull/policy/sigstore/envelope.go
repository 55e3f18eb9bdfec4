// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"encoding/json"
	"errors"
	"fmt"
)

const (
	statementPayload = "application/vnd.in-toto+json"
	statementV1      = "https://in-toto.io/Statement/v1"
	statementV01     = "https://in-toto.io/Statement/v0.1"
	// PredicateCosignSign is the predicate of a statement that means "this
	// image is signed", as opposed to the many that only report about it.
	PredicateCosignSign = "https://sigstore.dev/cosign/sign/v1"
)

type wireEnvelope struct {
	PayloadType string `json:"payloadType"`
	Payload     []byte `json:"payload"`
	Signatures  []struct {
		Sig []byte `json:"sig"`
	} `json:"signatures"`
}

// Envelope is the signed content of a DSSE envelope.
type Envelope struct {
	PayloadType string
	Payload     []byte
}

// open takes the envelope apart. Exactly one signature is allowed, so that
// there is no question which of several counts.
func (w *wireEnvelope) open() (*Envelope, []byte, error) {
	if len(w.Signatures) != 1 {
		return nil, nil, fmt.Errorf("envelope has %d signatures, not one", len(w.Signatures))
	}
	return &Envelope{PayloadType: w.PayloadType, Payload: w.Payload}, w.Signatures[0].Sig, nil
}

// encode is DSSE's pre-authentication encoding: what is signed.
func (e *Envelope) encode() []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(e.PayloadType), e.PayloadType, len(e.Payload)), e.Payload...)
}

// Subject is one thing that a statement is about.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Statement is an in-toto statement without its predicate's content.
type Statement struct {
	Type          string    `json:"_type"`
	PredicateType string    `json:"predicateType"`
	Subject       []Subject `json:"subject"`
}

// Statement reads the payload. It says what was signed only after Trust.Verify
// accepted the signature.
func (e *Envelope) Statement() (*Statement, error) {
	if e.PayloadType != statementPayload {
		return nil, fmt.Errorf("envelope holds %q, not an in-toto statement", clip(e.PayloadType))
	}
	var s Statement
	if err := json.Unmarshal(e.Payload, &s); err != nil {
		return nil, errors.New("envelope's in-toto statement cannot be read")
	}
	if s.Type != statementV1 && s.Type != statementV01 {
		return nil, fmt.Errorf("in-toto statement of unknown type %q", clip(s.Type))
	}
	return &s, nil
}
