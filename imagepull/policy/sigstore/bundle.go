// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// BundleMediaTypePrefix begins the media type of every version of a bundle.
const BundleMediaTypePrefix = "application/vnd.dev.sigstore.bundle"

// bundleTypes are the versions that are read, with the spelling of early
// tools.
func bundleTypes() []string {
	return []string{
		BundleMediaTypePrefix + ".v0.3+json",
		BundleMediaTypePrefix + "+json;version=0.3",
		BundleMediaTypePrefix + "+json;version=0.2",
		BundleMediaTypePrefix + "+json;version=0.1",
	}
}

// wireNumber is a 64-bit integer in the JSON of protocol buffers, where it is
// written as a string.
type wireNumber int64

func (n *wireNumber) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	if err != nil {
		return errors.New("not a 64-bit integer")
	}
	*n = wireNumber(v)
	return nil
}

type wireRaw struct {
	RawBytes []byte `json:"rawBytes"`
}

type wireEntry struct {
	LogIndex wireNumber `json:"logIndex"`
	LogID    struct {
		KeyID []byte `json:"keyId"`
	} `json:"logId"`
	KindVersion struct {
		Kind    string `json:"kind"`
		Version string `json:"version"`
	} `json:"kindVersion"`
	IntegratedTime   wireNumber `json:"integratedTime"`
	InclusionPromise *struct {
		SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
	} `json:"inclusionPromise"`
	InclusionProof *struct {
		LogIndex   wireNumber `json:"logIndex"`
		Hashes     [][]byte   `json:"hashes"`
		Checkpoint struct {
			Envelope string `json:"envelope"`
		} `json:"checkpoint"`
	} `json:"inclusionProof"`
	CanonicalizedBody []byte `json:"canonicalizedBody"`
}

type wireBundle struct {
	MediaType            string `json:"mediaType"`
	VerificationMaterial struct {
		Certificate *wireRaw `json:"certificate"`
		Chain       *struct {
			Certificates []wireRaw `json:"certificates"`
		} `json:"x509CertificateChain"`
		TlogEntries []wireEntry `json:"tlogEntries"`
		Timestamps  struct {
			RFC3161 []struct {
				SignedTimestamp []byte `json:"signedTimestamp"`
			} `json:"rfc3161Timestamps"`
		} `json:"timestampVerificationData"`
	} `json:"verificationMaterial"`
	MessageSignature *struct {
		MessageDigest struct {
			Algorithm string `json:"algorithm"`
			Digest    []byte `json:"digest"`
		} `json:"messageDigest"`
		Signature []byte `json:"signature"`
	} `json:"messageSignature"`
	DSSE *wireEnvelope `json:"dsseEnvelope"`
}

// ParseBundle reads a sigstore bundle, version 0.1 to 0.3, of the JSON form.
func ParseBundle(b []byte) (*Signature, error) {
	var w wireBundle
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, errors.New("not a sigstore bundle of the JSON form")
	}
	known := false
	for _, t := range bundleTypes() {
		known = known || w.MediaType == t
	}
	if !known {
		return nil, fmt.Errorf("bundle of unknown type %q", clip(w.MediaType))
	}
	s := &Signature{}
	if err := w.content(s); err != nil {
		return nil, err
	}
	if err := w.certificates(s); err != nil {
		return nil, err
	}
	m := w.VerificationMaterial
	if len(m.TlogEntries) > maxEntries || len(m.Timestamps.RFC3161) > maxTimestamps {
		return nil, fmt.Errorf("bundle with %d log entries and %d timestamps", len(m.TlogEntries), len(m.Timestamps.RFC3161))
	}
	for i, t := range m.TlogEntries {
		e, err := t.entry()
		if err != nil {
			return nil, fmt.Errorf("bundle: log entry %d: %w", i+1, err)
		}
		if e.proof == nil && w.MediaType != BundleMediaTypePrefix+"+json;version=0.1" {
			return nil, fmt.Errorf("bundle: log entry %d has no inclusion proof, which bundles since version 0.2 must have", i+1)
		}
		s.entries = append(s.entries, e)
	}
	for _, t := range m.Timestamps.RFC3161 {
		s.timestamps = append(s.timestamps, t.SignedTimestamp)
	}
	return s, nil
}

func (w *wireBundle) content(s *Signature) error {
	switch {
	case w.MessageSignature != nil && w.DSSE != nil:
		return errors.New("bundle has both a message signature and an envelope")
	case w.DSSE != nil:
		e, raw, err := w.DSSE.open()
		if err != nil {
			return err
		}
		s.Envelope, s.Message, s.raw = e, e.encode(), raw
	case w.MessageSignature != nil:
		d := w.MessageSignature.MessageDigest
		if d.Algorithm != "SHA2_256" || len(d.Digest) != sha256.Size {
			return fmt.Errorf("bundle signs an artifact named by %q, not by SHA2_256", clip(d.Algorithm))
		}
		s.Digest, s.raw = d.Digest, w.MessageSignature.Signature
	}
	if len(s.raw) == 0 {
		return errors.New("bundle has no signature")
	}
	return nil
}

func (w *wireBundle) certificates(s *Signature) error {
	m := w.VerificationMaterial
	var raw []wireRaw
	if m.Chain != nil {
		raw = m.Chain.Certificates
	}
	if m.Certificate != nil {
		raw = append([]wireRaw{*m.Certificate}, raw...)
	}
	if len(raw) > maxCertificates {
		return fmt.Errorf("bundle with %d certificates", len(raw))
	}
	for i, r := range raw {
		c, err := parseCertificate(r.RawBytes)
		if err != nil {
			return fmt.Errorf("bundle: certificate %d cannot be read: %w", i+1, err)
		}
		if i == 0 {
			s.certificate = c
		} else {
			s.intermediates = append(s.intermediates, c)
		}
	}
	return nil
}

func (w *wireEntry) entry() (entry, error) {
	e := entry{
		logID: w.LogID.KeyID, index: int64(w.LogIndex), integrated: int64(w.IntegratedTime),
		body: w.CanonicalizedBody, kind: w.KindVersion.Kind, version: w.KindVersion.Version,
	}
	if len(e.body) == 0 || e.index < 0 {
		return e, errors.New("no body or a negative index")
	}
	if w.InclusionPromise != nil {
		e.promise = w.InclusionPromise.SignedEntryTimestamp
	}
	if p := w.InclusionProof; p != nil {
		if p.Checkpoint.Envelope == "" || p.LogIndex < 0 {
			return e, errors.New("inclusion proof without checkpoint, or of a negative index")
		}
		e.proof = &inclusion{index: uint64(p.LogIndex), hashes: p.Hashes, checkpoint: p.Checkpoint.Envelope}
	}
	return e, nil
}
