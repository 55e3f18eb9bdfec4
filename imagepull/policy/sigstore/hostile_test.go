// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"math/big"
	"slices"
	"testing"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

// TestHugeKeys: certificates that come with a signature are not used if that
// takes minutes.
func TestHugeKeys(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	n := new(big.Int).Lsh(big.NewInt(1), 65536)
	huge := &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, huge, s.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	signed := s.SignMessage([]byte(payloadText), s.cert, s.key, s.at)
	for _, name := range []string{sigstore.AnnotationCertificate, sigstore.AnnotationChain} {
		a := s.Annotations(signed, true)
		a[name] = string(sigstoretest.CertPEM(cert))
		_, err := sigstore.FromAnnotations(signed.Message, a)
		check(t, err, "RSA key of 65537 bits")
	}
	signed.Cert = cert
	_, err = sigstore.ParseBundle(s.Bundle(signed, sigstoretest.Parts{}))
	check(t, err, "RSA key of 65537 bits")
}

// nested is an ASN.1 sequence in another, and so on, of n bytes in all.
func nested(n int) []byte {
	var parts [][]byte
	for length := 0; ; {
		head, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: make([]byte, length)})
		if err != nil || len(head) > n {
			break
		}
		parts = append(parts, head[:len(head)-length])
		length = len(head)
	}
	slices.Reverse(parts)
	return slices.Concat(parts...)
}

// TestHugeTimestamp: one that would take seconds to be read is not read.
func TestHugeTimestamp(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	response, err := asn1.Marshal(struct {
		Status struct{ Status int }
		Token  asn1.RawValue
	}{Token: asn1.RawValue{FullBytes: nested(20 << 10)}})
	if err != nil {
		t.Fatal(err)
	}
	signed := s.SignMessage([]byte(payloadText), s.cert, s.key, s.at)
	a := s.Annotations(signed, false)
	text, err := json.Marshal(map[string]any{"SignedRFC3161Timestamp": response})
	if err != nil {
		t.Fatal(err)
	}
	a[sigstore.AnnotationTimestamp] = string(text)
	a[sigstore.AnnotationBundle] = s.Annotations(signed, true)[sigstore.AnnotationBundle]
	sig, err := sigstore.FromAnnotations(signed.Message, a)
	if err != nil {
		t.Fatal(err)
	}
	// The promise says when; the timestamp is passed over, and quickly.
	check(t, s.trust().Verify(sig), "")
	check(t, s.trust().Verify(s.stamped(response)), "longer than 16384 bytes")
}
