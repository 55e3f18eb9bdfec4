// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

func TestParsePublicKey(t *testing.T) {
	t.Parallel()
	encode := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	curve := func(c elliptic.Curve) string {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return encode(&k.PublicKey)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak := &rsa.PublicKey{N: new(big.Int).Rsh(rsaKey.N, 1024), E: rsaKey.E}
	for _, c := range []struct{ in, want string }{
		{curve(elliptic.P256()), ""},
		{curve(elliptic.P384()), ""},
		{curve(elliptic.P521()), ""},
		{encode(edKey), ""},
		{encode(&rsaKey.PublicKey), ""},
		{string(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)})), ""},
		{curve(elliptic.P224()), "P-224"},
		{encode(weak), "RSA key of 1024 bits"},
		{curve(elliptic.P256()) + curve(elliptic.P256()), "more than one PEM block"},
		{string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})), "not a public key"},
		{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}})), "cannot be read"},
		{"ssh-ed25519 AAAA", "not a PEM public key"},
		{"", "not a PEM public key"},
	} {
		_, err := sigstore.ParsePublicKey([]byte(c.in))
		check(t, err, c.want)
	}
}

func TestParseBundle(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	good := string(s.Bundle(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), sigstoretest.Parts{Promise: true, Proof: true, Timestamp: true}))
	envelope := string(s.Bundle(s.SignStatement(sigstore.PredicateCosignSign, "", "ab", s.cert, s.key, s.at), sigstoretest.Parts{Proof: true}))
	for _, c := range []struct{ in, want string }{
		{good, ""},
		{envelope, ""},
		{string(s.Bundle(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), sigstoretest.Parts{Promise: true})), "no inclusion proof"},
		{strings.Replace(good, ".v0.3+json", ".v0.9+json", 1), "unknown type"},
		{strings.Replace(good, "SHA2_256", "SHA2_512", 1), "not by SHA2_256"},
		{strings.Replace(good, `"logIndex":"1"`, `"logIndex":"-1"`, 1), "negative index"},
		{strings.Replace(good, `"logIndex":"1"`, `"logIndex":"99999999999999999999"`, 1), "JSON form"},
		{strings.Replace(good, `"messageSignature"`, `"dsseEnvelope":{"signatures":[]},"messageSignature"`, 1), "both"},
		{strings.Replace(envelope, `"signatures":[{`, `"signatures":[{"sig":"AA=="},{`, 1), "2 signatures"},
		{strings.Replace(good, `"messageSignature"`, `"other"`, 1), "no signature"},
		{"{}", "unknown type"},
		{"[", "JSON form"},
	} {
		_, err := sigstore.ParseBundle([]byte(c.in))
		check(t, err, c.want)
	}
}

// TestPublicGood holds the built-in root together with one whose keys were
// published elsewhere: the public instance's log and certificate log.
func TestPublicGood(t *testing.T) {
	t.Parallel()
	root, err := sigstore.PublicGood()
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Rekor) != 2 || len(root.CT) != 2 || len(root.Fulcio) != 2 || len(root.Timestamp) != 1 {
		t.Errorf("%d logs, %d certificate logs, %d and %d authorities", len(root.Rekor), len(root.CT), len(root.Fulcio), len(root.Timestamp))
	}
	for _, bad := range []string{"", "{}", `{"mediaType":"application/json"}`} {
		if _, err := sigstore.ParseRoot([]byte(bad)); err == nil {
			t.Errorf("%q is a trusted root", bad)
		}
	}
}

// FuzzBundle reads anything as a bundle and checks it: nothing that the fuzzer
// makes is good, and nothing breaks.
func FuzzBundle(f *testing.F) {
	real, err := os.ReadFile("testdata/sigstore-js-2.0.0.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	i := sigstoretest.New(f)
	f.Add(i.Bundle(i.SignMessage([]byte(payloadText), nil, sigstoretest.NewKey(f), time.Now()), sigstoretest.Parts{Promise: true, Proof: true, Timestamp: true}))
	trust := trustOf(f, i)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sigstore.ParseBundle(b)
		if err != nil {
			return
		}
		if s.Message == nil {
			s.Message = []byte(payloadText)
		}
		if trust.Verify(s) == nil {
			t.Error("accepted")
		}
		if s.Envelope != nil {
			_, _ = s.Envelope.Statement()
		}
	})
}

// FuzzAnnotations does the same for cosign's first form.
func FuzzAnnotations(f *testing.F) {
	i := sigstoretest.New(f)
	cert, key := i.Certificate(sigstoretest.Identity{Issuer: issuer, Email: email, From: time.Now()})
	a := i.Annotations(i.SignMessage([]byte(payloadText), cert, key, time.Now()), true)
	f.Add(a[sigstore.AnnotationSignature], a[sigstore.AnnotationCertificate], a[sigstore.AnnotationChain], a[sigstore.AnnotationBundle], "")
	trust := trustOf(f, i)
	trust.Fulcio.Identity.Email = "nobody@example.test"
	f.Fuzz(func(t *testing.T, signature, cert, chain, bundle, timestamp string) {
		s, err := sigstore.FromAnnotations([]byte(payloadText), map[string]string{
			sigstore.AnnotationSignature: signature, sigstore.AnnotationCertificate: cert, sigstore.AnnotationChain: chain,
			sigstore.AnnotationBundle: bundle, sigstore.AnnotationTimestamp: timestamp,
		})
		if err == nil && trust.Verify(s) == nil {
			t.Error("accepted")
		}
	})
}

func trustOf(tb testing.TB, i *sigstoretest.Instance) *sigstore.Trust {
	tb.Helper()
	root, err := sigstore.ParseRoot(i.TrustedRoot())
	if err != nil {
		tb.Fatal(err)
	}
	return &sigstore.Trust{
		Fulcio: &sigstore.Fulcio{Authorities: root.Fulcio, Identity: sigstore.Identity{Issuer: issuer, Email: email}},
		Rekor:  root.Rekor, Timestamp: root.Timestamp,
	}
}
