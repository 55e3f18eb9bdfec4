// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// The annotations cosign puts on the layer that holds a signed payload.
const (
	AnnotationSignature   = "dev.cosignproject.cosign/signature"
	AnnotationCertificate = "dev.sigstore.cosign/certificate"
	AnnotationChain       = "dev.sigstore.cosign/chain"
	AnnotationBundle      = "dev.sigstore.cosign/bundle"
	AnnotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
)

const (
	maxCertificates = 16
	maxEntries      = 16
	maxTimestamps   = 16
	// maxTimestamp is for one with its certificates. To read it takes time that
	// grows with the square of its length.
	maxTimestamp = 16 << 10
)

// Signature is one signature in whatever form it was stored, not yet checked.
type Signature struct {
	// Message is what the signature is over: a payload, or the encoding of a
	// DSSE envelope. A bundle that signs an artifact has none; the caller sets
	// it to the artifact's bytes.
	Message []byte
	// Envelope is set where Message is the encoding of one.
	Envelope *Envelope
	// Digest is the SHA-256 that a bundle says its artifact has; nil
	// otherwise. The signature is over Message, whatever Digest says.
	Digest []byte

	raw           []byte
	certificate   *x509.Certificate
	intermediates []*x509.Certificate
	entries       []entry
	timestamps    [][]byte
}

// FromAnnotations reads a signature of cosign's first form: a layer with the
// signed payload and everything else in its annotations.
func FromAnnotations(payload []byte, annotations map[string]string) (*Signature, error) {
	s := &Signature{Message: payload}
	var err error
	if s.raw, err = base64.StdEncoding.DecodeString(annotations[AnnotationSignature]); err != nil || len(s.raw) == 0 {
		return nil, fmt.Errorf("annotation %s is not the base64 of a signature", AnnotationSignature)
	}
	if text, ok := annotations[AnnotationCertificate]; ok && text != "" {
		certs, err := ParseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", AnnotationCertificate, err)
		}
		if len(certs) != 1 {
			return nil, fmt.Errorf("annotation %s is not one PEM certificate", AnnotationCertificate)
		}
		s.certificate = certs[0]
	}
	if text, ok := annotations[AnnotationChain]; ok && text != "" {
		if s.intermediates, err = ParseCertificates([]byte(text)); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", AnnotationChain, err)
		}
	}
	if text, ok := annotations[AnnotationBundle]; ok && text != "" {
		e, err := parsePromise([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", AnnotationBundle, err)
		}
		s.entries = []entry{e}
	}
	if text, ok := annotations[AnnotationTimestamp]; ok && text != "" {
		var t struct {
			SignedRFC3161Timestamp []byte
		}
		if json.Unmarshal([]byte(text), &t) != nil || len(t.SignedRFC3161Timestamp) == 0 {
			return nil, fmt.Errorf("annotation %s cannot be read", AnnotationTimestamp)
		}
		s.timestamps = [][]byte{t.SignedRFC3161Timestamp}
	}
	return s, nil
}

// parsePromise reads cosign's annotation with the log's promise to include an
// entry.
func parsePromise(b []byte) (entry, error) {
	var p struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return entry{}, errors.New("not a log entry of the expected form")
	}
	id, err := hex.DecodeString(p.Payload.LogID)
	if err != nil || len(p.SignedEntryTimestamp) == 0 || len(p.Payload.Body) == 0 {
		return entry{}, errors.New("log entry without signed timestamp, body or log id")
	}
	return entry{
		logID: id, index: p.Payload.LogIndex, integrated: p.Payload.IntegratedTime,
		body: p.Payload.Body, promise: p.SignedEntryTimestamp,
	}, nil
}
