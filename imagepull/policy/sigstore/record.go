// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto"
	_ "crypto/sha512" // SHA-384 and SHA-512 of records
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// record is what a log entry must be about: this signature, by this key or
// certificate, over this message.
type record struct {
	message   []byte
	envelope  *Envelope
	signature []byte
	verifier  []byte // DER of the public key or of the certificate
}

type wireHash struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"`
}

// wireRecord is the body of a log entry: of every kind that signs images, one
// spec each.
type wireRecord struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Spec       json.RawMessage `json:"spec"`
}

// matches compares the body of the entry with what it must be about.
func (e *entry) matches(r *record) error {
	var w wireRecord
	if err := json.Unmarshal(e.body, &w); err != nil {
		return errors.New("the log entry's body cannot be read")
	}
	if e.kind != "" && (e.kind != w.Kind || e.version != w.APIVersion) {
		return errors.New("the log entry is of another kind than the bundle says")
	}
	var err error
	switch kind := w.Kind + "/" + w.APIVersion; kind {
	case "hashedrekord/0.0.1":
		err = r.matchHashed1(w.Spec)
	case "hashedrekord/0.0.2":
		err = r.matchHashed2(w.Spec)
	case "dsse/0.0.1":
		err = r.matchDSSE(w.Spec)
	case "intoto/0.0.2":
		err = r.matchInToto(w.Spec)
	default:
		err = fmt.Errorf("a log entry of kind %q is not supported", clip(kind))
	}
	return err
}

var errOtherRecord = errors.New("the log entry is about another signature, key or content")

func (r *record) matchHashed1(spec []byte) error {
	var w struct {
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
		Data struct {
			Hash wireHash `json:"hash"`
		} `json:"data"`
	}
	if json.Unmarshal(spec, &w) != nil {
		return errors.New("the log entry's hashedrekord cannot be read")
	}
	if !r.isHash(w.Data.Hash, r.message) || !bytes.Equal(w.Signature.Content, r.signature) || !r.isVerifier(w.Signature.PublicKey.Content) {
		return errOtherRecord
	}
	return nil
}

func (r *record) matchHashed2(spec []byte) error {
	var w struct {
		V002 struct {
			Data struct {
				Algorithm string `json:"algorithm"`
				Digest    []byte `json:"digest"`
			} `json:"data"`
			Signature struct {
				Content  []byte `json:"content"`
				Verifier struct {
					PublicKey       wireRaw `json:"publicKey"`
					X509Certificate wireRaw `json:"x509Certificate"`
				} `json:"verifier"`
			} `json:"signature"`
		} `json:"hashedRekordV002"`
	}
	if json.Unmarshal(spec, &w) != nil {
		return errors.New("the log entry's hashedrekord cannot be read")
	}
	d, s := w.V002.Data, w.V002.Signature
	h, ok := map[string]crypto.Hash{"SHA2_256": crypto.SHA256, "SHA2_384": crypto.SHA384, "SHA2_512": crypto.SHA512}[d.Algorithm]
	verifier := append(bytes.Clone(s.Verifier.PublicKey.RawBytes), s.Verifier.X509Certificate.RawBytes...)
	if !ok || !bytes.Equal(d.Digest, sum(h, r.message)) || !bytes.Equal(s.Content, r.signature) || !bytes.Equal(verifier, r.verifier) {
		return errOtherRecord
	}
	return nil
}

func (r *record) matchDSSE(spec []byte) error {
	var w struct {
		PayloadHash wireHash `json:"payloadHash"`
		Signatures  []struct {
			Signature []byte `json:"signature"`
			Verifier  []byte `json:"verifier"`
		} `json:"signatures"`
	}
	if json.Unmarshal(spec, &w) != nil || len(w.Signatures) != 1 {
		return errors.New("the log entry's dsse cannot be read")
	}
	s := w.Signatures[0]
	if r.envelope == nil || !r.isHash(w.PayloadHash, r.envelope.Payload) || !bytes.Equal(s.Signature, r.signature) || !r.isVerifier(s.Verifier) {
		return errOtherRecord
	}
	return nil
}

func (r *record) matchInToto(spec []byte) error {
	var w struct {
		Content struct {
			Envelope struct {
				PayloadType string `json:"payloadType"`
				Signatures  []struct {
					Sig       []byte `json:"sig"` // base64 of the base64 in the envelope
					PublicKey []byte `json:"publicKey"`
				} `json:"signatures"`
			} `json:"envelope"`
			PayloadHash wireHash `json:"payloadHash"`
		} `json:"content"`
	}
	if json.Unmarshal(spec, &w) != nil || len(w.Content.Envelope.Signatures) != 1 {
		return errors.New("the log entry's intoto cannot be read")
	}
	s := w.Content.Envelope.Signatures[0]
	signature, err := base64.StdEncoding.DecodeString(string(s.Sig))
	if err != nil {
		return errors.New("the log entry's intoto cannot be read")
	}
	if r.envelope == nil || w.Content.Envelope.PayloadType != r.envelope.PayloadType || !r.isHash(w.Content.PayloadHash, r.envelope.Payload) ||
		!bytes.Equal(signature, r.signature) || !r.isVerifier(s.PublicKey) {
		return errOtherRecord
	}
	return nil
}

// isHash reports whether w is a hash of b.
func (r *record) isHash(w wireHash, b []byte) bool {
	h, ok := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[w.Algorithm]
	return ok && w.Value == hex.EncodeToString(sum(h, b))
}

// isVerifier compares a PEM key or certificate by its bytes.
func (r *record) isVerifier(text []byte) bool {
	block, rest := pem.Decode(text)
	return block != nil && len(bytes.TrimSpace(rest)) == 0 && bytes.Equal(block.Bytes, r.verifier)
}
