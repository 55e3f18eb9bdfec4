// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/smallstep/pkcs7"
)

// tstInfo is what a timestamp authority signs (RFC 3161, section 2.4.2), as
// far as it is needed; the rest is optional.
type tstInfo struct {
	Version        int
	Policy         asn1.ObjectIdentifier
	MessageImprint struct {
		HashAlgorithm pkix.AlgorithmIdentifier
		HashedMessage []byte
	}
	SerialNumber asn1.RawValue
	Time         time.Time `asn1:"generalized"`
}

// timestampResponse is the answer of an authority (RFC 3161, section 2.4.2).
type timestampResponse struct {
	Status struct {
		Status int
		Rest   asn1.RawValue `asn1:"optional"`
	}
	Token asn1.RawValue `asn1:"optional"`
}

// verifyTimestamp checks that one of the authorities saw message, and returns
// when.
func verifyTimestamp(response, message []byte, authorities []Authority) (time.Time, error) {
	token, info, err := parseTimestamp(response)
	if err != nil {
		return time.Time{}, err
	}
	h, ok := hashByOID(info.MessageImprint.HashAlgorithm.Algorithm)
	if !ok || !bytes.Equal(info.MessageImprint.HashedMessage, sum(h, message)) {
		return time.Time{}, errors.New("the timestamp is about another signature")
	}
	err = errors.New("no timestamp authority is trusted")
	for _, a := range authorities {
		if err = a.verifyToken(token, info.Time); err == nil {
			return info.Time, nil
		}
	}
	return time.Time{}, err
}

func parseTimestamp(response []byte) (*pkcs7.PKCS7, *tstInfo, error) {
	malformed := errors.New("the timestamp cannot be read")
	if len(response) > maxTimestamp {
		return nil, nil, fmt.Errorf("the timestamp is longer than %d bytes", maxTimestamp)
	}
	var r timestampResponse
	rest, err := asn1.Unmarshal(response, &r)
	if err != nil || len(rest) > 0 || r.Status.Status > 1 {
		return nil, nil, malformed
	}
	token, err := pkcs7.Parse(r.Token.FullBytes)
	if err != nil {
		return nil, nil, malformed
	}
	for _, c := range token.Certificates {
		if err := checkSize(c); err != nil {
			return nil, nil, fmt.Errorf("the timestamp's certificate: %w", err)
		}
	}
	var info tstInfo
	if rest, err = asn1.Unmarshal(token.Content, &info); err != nil || len(rest) > 0 || info.Version != 1 {
		return nil, nil, malformed
	}
	return token, &info, nil
}

// verifyToken checks the token's signature and that its signer is a timestamp
// authority under a, at the time it claims.
func (a Authority) verifyToken(token *pkcs7.PKCS7, t time.Time) error {
	if !within(t, a.Start, a.End) {
		return errors.New("the timestamp authority is not trusted for that time")
	}
	known := append(append([]*x509.Certificate{}, a.Intermediates...), token.Certificates...)
	signed := *token
	signed.Certificates = known // the signer's may be left out of the token
	signer := signed.GetOnlySigner()
	var content asn1.ObjectIdentifier
	isTimestamp := signed.UnmarshalSignedAttribute(pkcs7.OIDAttributeContentType, &content) == nil &&
		content.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4}) // id-ct-TSTInfo
	if signer == nil || !isTimestamp || signed.Verify() != nil {
		return errors.New("the timestamp is not signed as it should be")
	}
	if err := onlyForTimestamps(signer); err != nil {
		return err
	}
	if _, err := signer.Verify(x509.VerifyOptions{
		Roots: pool(a.Roots), Intermediates: pool(known), CurrentTime: t,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	}); err != nil {
		return fmt.Errorf("the timestamp's certificate: %w", err)
	}
	return nil
}

// onlyForTimestamps holds the certificate to RFC 3161, section 2.3: no
// authority, and one usage, critical.
func onlyForTimestamps(cert *x509.Certificate) error {
	usage := asn1.ObjectIdentifier{2, 5, 29, 37}
	good := !cert.IsCA && len(cert.ExtKeyUsage) == 1 && len(cert.UnknownExtKeyUsage) == 0 && cert.ExtKeyUsage[0] == x509.ExtKeyUsageTimeStamping
	for _, x := range cert.Extensions {
		if x.Id.Equal(usage) {
			good = good && x.Critical
		}
	}
	if !good {
		return errors.New("the timestamp's certificate is not for timestamps alone")
	}
	return nil
}

func hashByOID(id asn1.ObjectIdentifier) (crypto.Hash, bool) {
	for i, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if id.Equal(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1 + i}) {
			return h, true
		}
	}
	return 0, false
}
