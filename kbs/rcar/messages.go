// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Version is the protocol version this package speaks.
const Version = "0.4.0"

// SessionCookie is the name of the cookie that joins the four messages.
const SessionCookie = "kbs-session-id"

// Limits of the parsers, in bytes.
const (
	maxName     = 64
	maxNonce    = 1 << 10
	maxRequest  = 64 << 10
	maxToken    = 1 << 20
	maxEvidence = 1 << 20
	maxInitData = 1 << 20
	// MaxAttestation is the largest Attestation message accepted.
	MaxAttestation = 4 << 20
)

// Request opens a handshake.
type Request struct {
	Version     string          `json:"version"`
	TEE         string          `json:"tee"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// Challenge is the service's answer to a Request.
type Challenge struct {
	Nonce       string          `json:"nonce"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// RuntimeData is what the evidence is bound to.
type RuntimeData struct {
	Nonce     string    `json:"nonce"`
	TEEPubKey PublicKey `json:"tee-pubkey"`
}

// InitData is the configuration that was measured when the TEE started, as
// plain text.
type InitData struct {
	Format string `json:"format"`
	Body   string `json:"body"`
}

// Evidence is the TEE's own evidence, whose shape depends on the TEE, and the
// JSON text of a map from device TEE to evidence, empty when there is none.
type Evidence struct {
	Primary    json.RawMessage `json:"primary_evidence"`
	Additional string          `json:"additional_evidence"`
}

// Attestation answers a Challenge.
type Attestation struct {
	InitData    *InitData   `json:"init-data"`
	RuntimeData RuntimeData `json:"runtime-data"`
	Evidence    Evidence    `json:"tee-evidence"`
}

// Response closes the handshake. Token is a bearer credential.
type Response struct {
	Token string `json:"token"`
}

// ParseRequest parses and checks a Request. Version is only checked to be
// there: which versions are served is the service's decision.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	if err := parse("request", b, maxRequest, &r); err != nil {
		return Request{}, err
	}
	if r.Version == "" || len(r.Version) > maxName {
		return Request{}, fmt.Errorf("rcar request: version is missing or longer than %d bytes", maxName)
	}
	if r.TEE == "" || len(r.TEE) > maxName {
		return Request{}, fmt.Errorf("rcar request: tee is missing or longer than %d bytes", maxName)
	}
	return r, nil
}

// ParseChallenge parses and checks a Challenge.
func ParseChallenge(b []byte) (Challenge, error) {
	var c Challenge
	if err := parse("challenge", b, maxRequest, &c); err != nil {
		return Challenge{}, err
	}
	if err := checkNonce(c.Nonce); err != nil {
		return Challenge{}, fmt.Errorf("rcar challenge: %w", err)
	}
	return c, nil
}

// ParseAttestation parses and checks an Attestation. The evidence is only
// checked to be JSON of an accepted size, and the key only to name its type.
func ParseAttestation(b []byte) (Attestation, error) {
	var a Attestation
	if err := parse("attestation", b, MaxAttestation, &a); err != nil {
		return Attestation{}, err
	}
	if err := a.check(); err != nil {
		return Attestation{}, fmt.Errorf("rcar attestation: %w", err)
	}
	return a, nil
}

func (a Attestation) check() error {
	if err := checkNonce(a.RuntimeData.Nonce); err != nil {
		return err
	}
	if a.RuntimeData.TEEPubKey.KTY == "" {
		return errors.New("tee-pubkey is missing or has no kty")
	}
	if p := a.Evidence.Primary; len(p) == 0 || bytes.Equal(p, []byte("null")) {
		return errors.New("primary_evidence is missing")
	}
	if len(a.Evidence.Primary) > maxEvidence || len(a.Evidence.Additional) > maxEvidence {
		return fmt.Errorf("evidence is larger than %d bytes", maxEvidence)
	}
	if a.InitData != nil && len(a.InitData.Body) > maxInitData {
		return fmt.Errorf("init-data is larger than %d bytes", maxInitData)
	}
	return nil
}

// ParseResponse parses and checks a Response.
func ParseResponse(b []byte) (Response, error) {
	var r Response
	if err := parse("response", b, maxToken+maxRequest, &r); err != nil {
		return Response{}, err
	}
	if r.Token == "" || len(r.Token) > maxToken {
		return Response{}, fmt.Errorf("rcar response: token is missing or longer than %d bytes", maxToken)
	}
	return r, nil
}

func checkNonce(nonce string) error {
	if nonce == "" || len(nonce) > maxNonce {
		return fmt.Errorf("nonce is missing or longer than %d bytes", maxNonce)
	}
	return nil
}

func parse(what string, b []byte, limit int, into any) error {
	if len(b) > limit {
		return fmt.Errorf("rcar %s: larger than %d bytes", what, limit)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("rcar %s: %w", what, hideInput(err))
	}
	return nil
}

// hideInput drops the texts in which encoding/json quotes its input, which may
// be a token or evidence.
func hideInput(err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("not JSON at byte %d", syntax.Offset)
	}
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		if typ.Field == "" {
			return errors.New("not a JSON object")
		}
		return fmt.Errorf("member %s is not of type %s", typ.Field, typ.Type)
	}
	return errors.New("not JSON of the expected shape")
}
