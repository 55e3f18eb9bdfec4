// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Trust says whose signatures are good. Exactly one of Keys, Fulcio and PKI
// is set; anything else accepts nothing.
type Trust struct {
	Keys   []crypto.PublicKey
	Fulcio *Fulcio
	PKI    *PKI
	// Rekor are the logs one of which must hold the signature. Empty: none
	// need hold it, which Fulcio does not allow.
	Rekor []Log
	// Timestamp are authorities whose time counts beside a log's own.
	Timestamp []Authority
	// Now is the clock for certificates of a PKI; nil means time.Now.
	Now func() time.Time
}

// Fulcio is the trust in certificates that live for minutes: a log or a
// timestamp authority must say that they were used in time.
type Fulcio struct {
	Authorities []Authority
	Identity    Identity
	// CT are the certificate logs one of which must have promised to hold the
	// certificate. nil asks for no promise; empty accepts none.
	CT []Log
}

// Verify checks the signature over s.Message. nil means: it is good, by
// somebody whom t names. What Message says is not looked at.
func (t *Trust) Verify(s *Signature) error {
	set := 0
	for _, is := range []bool{len(t.Keys) > 0, t.Fulcio != nil, t.PKI != nil} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return errors.New("not exactly one of keys, Fulcio and PKI is trusted")
	case len(s.Message) == 0:
		return errors.New("nothing is signed")
	case t.Keys != nil:
		return t.verifyKeys(s)
	case s.certificate == nil:
		return errors.New("signed with a key, where a certificate is required")
	case t.Fulcio != nil:
		return t.verifyFulcio(s)
	}
	return t.verifyPKI(s)
}

func (t *Trust) verifyKeys(s *Signature) error {
	for _, key := range t.Keys {
		if verifyBlob(key, s.Message, s.raw) != nil {
			continue
		}
		if len(t.Rekor) == 0 {
			return nil
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return errors.New("the key cannot be compared with the log's")
		}
		_, err = t.logged(s, der)
		return err
	}
	if s.certificate != nil {
		return errors.New("signed with a certificate, and not by a trusted key")
	}
	return errors.New("not signed by a trusted key")
}

func (t *Trust) verifyFulcio(s *Signature) error {
	if len(t.Rekor) == 0 {
		return errors.New("no transparency log is trusted")
	}
	// A certificate without any usage would do for x509.
	if !slices.Contains(s.certificate.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) {
		return errors.New("the certificate is not for code signing: incompatible key usage")
	}
	times, err := t.logged(s, s.certificate.Raw)
	if err != nil {
		return err
	}
	why := errors.New("neither a log nor a timestamp authority says so")
	for _, ts := range s.timestamps {
		seen, err := verifyTimestamp(ts, s.raw, t.Timestamp)
		if err != nil {
			why = err // of an authority that is not trusted: it says nothing
			continue
		}
		times = append(times, seen)
	}
	if len(times) == 0 {
		return fmt.Errorf("nobody trusted says when it was signed: %w", why)
	}
	for _, at := range times {
		chains, err := t.Fulcio.chains(s, at)
		if err != nil {
			return err
		}
		if t.Fulcio.CT != nil {
			if err := verifySCT(chains, t.Fulcio.CT); err != nil {
				return err
			}
		}
	}
	if err := t.Fulcio.Identity.verify(s.certificate); err != nil {
		return err
	}
	return s.verifyCertified()
}

func (f *Fulcio) chains(s *Signature, at time.Time) ([][]*x509.Certificate, error) {
	err := errors.New("no certificate authority is trusted")
	for _, a := range f.Authorities {
		var chains [][]*x509.Certificate
		if chains, err = a.verify(s.certificate, s.intermediates, at); err == nil {
			return chains, nil
		}
	}
	return nil, fmt.Errorf("the certificate, at the time of the signature: %w", err)
}

func (t *Trust) verifyPKI(s *Signature) error {
	now := t.Now
	if now == nil {
		now = time.Now
	}
	if err := t.PKI.verify(s.certificate, s.intermediates, now()); err != nil {
		return err
	}
	return s.verifyCertified()
}

// verifyCertified checks the signature by the certificate's key.
func (s *Signature) verifyCertified() error {
	if err := checkKey(s.certificate.PublicKey); err != nil {
		return err
	}
	return verifyBlob(s.certificate.PublicKey, s.Message, s.raw)
}

// logged checks that a trusted log holds the signature, made by what verifier
// is the DER of, and returns the times that logs vouch for.
func (t *Trust) logged(s *Signature, verifier []byte) ([]time.Time, error) {
	r := &record{message: s.Message, envelope: s.Envelope, signature: s.raw, verifier: verifier}
	err := errors.New("the signature comes without an entry of a transparency log")
	var times []time.Time
	found := false
	for i := range s.entries {
		at, failed := s.entries[i].verify(t.Rekor, r)
		if failed != nil {
			err = failed
			continue
		}
		found = true
		if !at.IsZero() {
			times = append(times, at)
		}
	}
	if !found {
		return nil, err
	}
	return times, nil
}
