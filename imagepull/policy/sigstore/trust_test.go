// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

const (
	issuer = "https://issuer.test"
	email  = "dev@example.test"
)

// scene is an instance and a certificate of it.
type scene struct {
	*testing.T
	*sigstoretest.Instance
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	at   time.Time
	root *sigstore.Root
}

func newScene(t *testing.T, change func(*sigstoretest.Identity)) *scene {
	t.Helper()
	s := &scene{T: t, Instance: sigstoretest.New(t), at: time.Now().Add(-24 * time.Hour)}
	id := sigstoretest.Identity{Issuer: issuer, Email: email, From: s.at.Add(-time.Minute)}
	if change != nil {
		change(&id)
	}
	s.cert, s.key = s.Certificate(id)
	var err error
	if s.root, err = sigstore.ParseRoot(s.TrustedRoot()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) trust() *sigstore.Trust {
	return &sigstore.Trust{
		Fulcio: &sigstore.Fulcio{Authorities: s.root.Fulcio, CT: s.root.CT, Identity: sigstore.Identity{Issuer: issuer, Email: email}},
		Rekor:  s.root.Rekor, Timestamp: s.root.Timestamp,
	}
}

func (s *scene) bundle(signed *sigstoretest.Signed, p sigstoretest.Parts) *sigstore.Signature {
	s.Helper()
	sig, err := sigstore.ParseBundle(s.Bundle(signed, p))
	if err != nil {
		s.Fatal(err)
	}
	if sig.Message == nil {
		sig.Message = signed.Message
	}
	return sig
}

func (s *scene) annotated(signed *sigstoretest.Signed, logged bool, change func(map[string]string)) *sigstore.Signature {
	s.Helper()
	a := s.Annotations(signed, logged)
	if change != nil {
		change(a)
	}
	sig, err := sigstore.FromAnnotations(signed.Message, a)
	if err != nil {
		s.Fatal(err)
	}
	return sig
}

const payloadText = `{"critical":{}}`

func TestFulcio(t *testing.T) {
	t.Parallel()
	other := sigstoretest.NewKey(t)
	all := sigstoretest.Parts{Promise: true, Proof: true, Timestamp: true}
	for name, c := range map[string]struct {
		id    func(*sigstoretest.Identity)
		sign  func(*scene) *sigstore.Signature
		trust func(*sigstore.Trust)
		want  string // part of the error, "" for good
	}{
		"annotations": {sign: func(s *scene) *sigstore.Signature {
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, nil)
		}},
		"bundle with everything": {sign: func(s *scene) *sigstore.Signature {
			return s.bundle(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), all)
		}},
		"proof and timestamp":        {sign: bundleWith(sigstoretest.Parts{Proof: true, Timestamp: true})},
		"proof without any time":     {sign: bundleWith(sigstoretest.Parts{Proof: true}), want: "nobody trusted says when"},
		"timestamp without log":      {sign: bundleWith(sigstoretest.Parts{Timestamp: true}), want: "without an entry"},
		"proof, unknown timestamper": {sign: bundleWith(sigstoretest.Parts{Proof: true, Timestamp: true}), trust: func(t *sigstore.Trust) { t.Timestamp = nil }, want: "no timestamp authority is trusted"},
		"statement": {sign: func(s *scene) *sigstore.Signature {
			return s.bundle(s.SignStatement(sigstore.PredicateCosignSign, "", strings.Repeat("ab", 32), s.cert, s.key, s.at), all)
		}},
		"not logged": {sign: func(s *scene) *sigstore.Signature {
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), false, nil)
		}, want: "without an entry"},
		"logged too late": {sign: func(s *scene) *sigstore.Signature {
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at.Add(time.Hour)), true, nil)
		}, want: "expired"},
		"timestamp too late, promise in time": {sign: func(s *scene) *sigstore.Signature {
			good := s.SignMessage([]byte(payloadText), s.cert, s.key, s.at)
			late := *good
			late.At = s.at.Add(time.Hour)
			sig := s.bundle(&late, sigstoretest.Parts{Proof: true, Timestamp: true})
			return sig
		}, want: "expired"},
		"entry of another signature": {sign: func(s *scene) *sigstore.Signature {
			theirs := s.Annotations(s.SignMessage([]byte("other"), s.cert, s.key, s.at), true)
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, func(a map[string]string) {
				a[sigstore.AnnotationBundle] = theirs[sigstore.AnnotationBundle]
			})
		}, want: "about another signature"},
		"entry of another log": {sign: func(s *scene) *sigstore.Signature {
			signed := s.SignMessage([]byte(payloadText), s.cert, s.key, s.at)
			theirs := sigstoretest.New(s.T).Annotations(signed, true)
			return s.annotated(signed, true, func(a map[string]string) {
				a[sigstore.AnnotationBundle] = theirs[sigstore.AnnotationBundle]
			})
		}, want: "transparency log that is not trusted"},
		"entry with another time": {sign: func(s *scene) *sigstore.Signature {
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, func(a map[string]string) {
				var b map[string]any
				_ = json.Unmarshal([]byte(a[sigstore.AnnotationBundle]), &b)
				b["Payload"].(map[string]any)["integratedTime"] = s.at.Unix() + 1
				out, _ := json.Marshal(b)
				a[sigstore.AnnotationBundle] = string(out)
			})
		}, want: "not of a trusted transparency log"},
		"entry of another signature of the same": {sign: func(s *scene) *sigstore.Signature {
			theirs := s.Annotations(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true)
			return s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, func(a map[string]string) {
				a[sigstore.AnnotationBundle] = theirs[sigstore.AnnotationBundle]
			})
		}, want: "about another signature"},
		"entry of another signature of the same statement": {sign: func(s *scene) *sigstore.Signature {
			signed := s.SignStatement(sigstore.PredicateCosignSign, "", "ab", s.cert, s.key, s.at)
			again := sigstoretest.Sign(s.T, s.key, signed.Message)
			encode := base64.StdEncoding.EncodeToString
			b := strings.Replace(string(s.Bundle(signed, all)), encode(signed.Signature), encode(again), 1)
			sig, err := sigstore.ParseBundle([]byte(b))
			if err != nil {
				s.Fatal(err)
			}
			return sig
		}, want: "about another signature"},
		"timestamp of another signature": {sign: func(s *scene) *sigstore.Signature {
			return s.stamped(s.Timestamp([]byte("other"), s.at))
		}, want: "the timestamp is about another signature"},
		"timestamp that is not said to be one": {sign: func(s *scene) *sigstore.Signature {
			return s.stamped(nil)
		}, want: "not signed as it should be"},
		"timestamper was trusted before": {
			sign:  bundleWith(sigstoretest.Parts{Proof: true, Timestamp: true}),
			trust: func(t *sigstore.Trust) { t.Timestamp[0].End = time.Now().AddDate(-1, 0, 0) }, want: "not trusted for that time",
		},
		"timestamper is not only that": {sign: func(s *scene) *sigstore.Signature {
			s.SetTimestamper(false)
			return s.bundle(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), sigstoretest.Parts{Proof: true, Timestamp: true})
		}, want: "not for timestamps alone"},
		"signed by another key": {sign: func(s *scene) *sigstore.Signature {
			signed := s.SignMessage([]byte(payloadText), s.cert, sigstoretest.NewKey(s.T), s.at)
			return s.annotated(signed, true, nil)
		}, want: "does not fit the key"},
		"message changed": {sign: func(s *scene) *sigstore.Signature {
			sig := s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, nil)
			sig.Message = []byte("other")
			return sig
		}, want: "about another"},
		"certificate of another authority": {sign: func(s *scene) *sigstore.Signature {
			cert, key := sigstoretest.New(s.T).Certificate(sigstoretest.Identity{Issuer: issuer, Email: email, From: s.at})
			return s.annotated(s.SignMessage([]byte(payloadText), cert, key, s.at), true, nil)
		}, want: "unknown authority"},
		"certificate for servers": {
			id:   func(id *sigstoretest.Identity) { id.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
			sign: bundleWith(all), want: "incompatible key usage",
		},
		"certificate for nothing in particular": {
			id:   func(id *sigstoretest.Identity) { id.Usage = []x509.ExtKeyUsage{} },
			sign: bundleWith(all), want: "incompatible key usage",
		},
		"certificate for anything": {
			id:   func(id *sigstoretest.Identity) { id.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
			sign: bundleWith(all), want: "incompatible key usage",
		},
		"no promise of a certificate log":    {id: func(id *sigstoretest.Identity) { id.NoSCT = true }, sign: bundleWith(all), want: "carries no promise"},
		"promise is not asked for":           {id: func(id *sigstoretest.Identity) { id.NoSCT = true }, sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.CT = nil }},
		"no certificate log is trusted":      {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.CT = []sigstore.Log{} }, want: "no trusted certificate log"},
		"certificate log is another":         {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.CT[0].Key = other.Public() }, want: "no trusted certificate log"},
		"certificate log was trusted before": {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.CT[0].End = time.Now().AddDate(-1, 0, 0) }, want: "no trusted certificate log"},
		"no log is trusted":                  {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Rekor = nil }, want: "no transparency log is trusted"},
		"log was trusted before":             {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Rekor[0].End = time.Now().AddDate(-1, 0, 0) }, want: "outside of the log's validity"},
		"log of another origin":              {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Rekor[0].Origin = "rekor.sigstore" }, want: "another transparency log"},
		"authority was trusted before":       {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.Authorities[0].End = time.Now().AddDate(-1, 0, 0) }, want: "not trusted for that time"},
		"another issuer":                     {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.Identity.Issuer = "https://other.test" }, want: "OpenID issuer"},
		"another person":                     {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.Identity.Email = "eve@example.test" }, want: `signed by "dev@example.test"`},
		"no person":                          {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio.Identity.Email = "" }, want: "signed by"},
		"workflow": {
			id:   func(id *sigstoretest.Identity) { id.Email, id.URI = "", "https://git.test/org/repo@refs/tags/v1" },
			sign: bundleWith(all),
			trust: func(t *sigstore.Trust) {
				t.Fulcio.Identity = sigstore.Identity{Issuer: issuer, URI: "https://git.test/org/repo@refs/tags/v1"}
			},
		},
		"workflow by prefix": {
			id:   func(id *sigstoretest.Identity) { id.Email, id.URI = "", "https://git.test/org/repo@refs/tags/v1" },
			sign: bundleWith(all),
			trust: func(t *sigstore.Trust) {
				t.Fulcio.Identity = sigstore.Identity{Issuer: issuer, URIPrefix: "https://git.test/org/repo@"}
			},
		},
		"workflow of another": {
			id:   func(id *sigstoretest.Identity) { id.Email, id.URI = "", "https://git.test/org/repository@refs/tags/v1" },
			sign: bundleWith(all),
			trust: func(t *sigstore.Trust) {
				t.Fulcio.Identity = sigstore.Identity{Issuer: issuer, URIPrefix: "https://git.test/org/repo@"}
			},
			want: "signed by",
		},
		"signed with a key": {sign: func(s *scene) *sigstore.Signature {
			return s.bundle(s.SignMessage([]byte(payloadText), nil, s.key, s.at), all)
		}, want: "a certificate is required"},
		"nothing is trusted": {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.Fulcio = nil }, want: "not exactly one"},
		"two are trusted":    {sign: bundleWith(all), trust: func(t *sigstore.Trust) { t.PKI = &sigstore.PKI{} }, want: "not exactly one"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.id)
			trust := s.trust()
			if c.trust != nil {
				c.trust(trust)
			}
			check(t, trust.Verify(c.sign(s)), c.want)
		})
	}
}

// stamped is a bundle with this timestamp; nil is a right one, mislabelled.
func (s *scene) stamped(timestamp []byte) *sigstore.Signature {
	s.Helper()
	signed := s.SignMessage([]byte(payloadText), s.cert, s.key, s.at)
	if timestamp == nil {
		timestamp = s.Mislabelled(signed.Signature, s.at)
	}
	var b map[string]any
	if err := json.Unmarshal(s.Bundle(signed, sigstoretest.Parts{Proof: true}), &b); err != nil {
		s.Fatal(err)
	}
	b["verificationMaterial"].(map[string]any)["timestampVerificationData"] = map[string]any{
		"rfc3161Timestamps": []any{map[string]any{"signedTimestamp": timestamp}},
	}
	out, err := json.Marshal(b)
	if err != nil {
		s.Fatal(err)
	}
	sig, err := sigstore.ParseBundle(out)
	if err != nil {
		s.Fatal(err)
	}
	sig.Message = signed.Message
	return sig
}

func bundleWith(p sigstoretest.Parts) func(*scene) *sigstore.Signature {
	return func(s *scene) *sigstore.Signature {
		return s.bundle(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), p)
	}
}

func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want one with %q", err, want)
	}
}

// TestEveryBitCounts flips bits all over good signatures: none stays good.
func TestEveryBitCounts(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	trust := s.trust()
	signed := s.SignStatement(sigstore.PredicateCosignSign, "", strings.Repeat("ab", 32), s.cert, s.key, s.at)
	whole := s.Bundle(signed, sigstoretest.Parts{Promise: true, Proof: true})
	sig, err := sigstore.ParseBundle(whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := trust.Verify(sig); err != nil {
		t.Fatal(err)
	}
	survived := 0
	for i := range whole {
		b := append([]byte{}, whole...)
		b[i] ^= 1
		if sig, err := sigstore.ParseBundle(b); err == nil && trust.Verify(sig) == nil {
			// What is said twice (the log's id and root beside what it signed)
			// may be wrong once; what is signed may not.
			if string(sig.Envelope.Payload) != string(signed.Payload) {
				t.Fatalf("byte %d: another []byte(payloadText) is accepted", i)
			}
			survived++
		}
	}
	if survived > len(whole)/10 {
		t.Errorf("%d of %d changed bundles are accepted", survived, len(whole))
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	key, other := sigstoretest.NewKey(t), sigstoretest.NewKey(t)
	signed := s.SignMessage([]byte(payloadText), nil, key, s.at)
	for name, c := range map[string]struct {
		trust sigstore.Trust
		sig   *sigstore.Signature
		want  string
	}{
		"good":          {trust: sigstore.Trust{Keys: []crypto.PublicKey{other.Public(), key.Public()}}, sig: s.annotated(signed, false, nil)},
		"other":         {trust: sigstore.Trust{Keys: []crypto.PublicKey{other.Public()}}, sig: s.annotated(signed, false, nil), want: "not signed by a trusted key"},
		"logged":        {trust: sigstore.Trust{Keys: []crypto.PublicKey{key.Public()}, Rekor: s.root.Rekor}, sig: s.annotated(signed, true, nil)},
		"not logged":    {trust: sigstore.Trust{Keys: []crypto.PublicKey{key.Public()}, Rekor: s.root.Rekor}, sig: s.annotated(signed, false, nil), want: "without an entry"},
		"bundle, proof": {trust: sigstore.Trust{Keys: []crypto.PublicKey{key.Public()}, Rekor: s.root.Rekor}, sig: s.bundle(signed, sigstoretest.Parts{Proof: true})},
		"certificate":   {trust: sigstore.Trust{Keys: []crypto.PublicKey{key.Public()}}, sig: s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), true, nil), want: "with a certificate"},
	} {
		check(t, c.trust.Verify(c.sig), c.want)
		t.Log(name)
	}
}

func TestPKI(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	now := func() time.Time { return s.at }
	sig := s.annotated(s.SignMessage([]byte(payloadText), s.cert, s.key, s.at), false, nil)
	roots := []*x509.Certificate{s.Root}
	for _, c := range []struct {
		trust sigstore.Trust
		want  string
	}{
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: roots, Email: email}, Now: now}},
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: roots, Email: email}}, want: "expired"},
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: roots, Email: "eve@example.test"}, Now: now}, want: "is for"},
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: roots, Hostname: "build.example.test"}, Now: now}, want: "not for the host"},
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: roots}, Now: now}, want: "no subject"},
		{trust: sigstore.Trust{PKI: &sigstore.PKI{Roots: []*x509.Certificate{sigstoretest.New(t).Root}, Email: email}, Now: now}, want: "unknown authority"},
	} {
		check(t, c.trust.Verify(sig), c.want)
	}
}

// TestRealBundle checks a bundle that the public instance made, with what is
// built in.
func TestRealBundle(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/sigstore-js-2.0.0.json")
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sigstore.ParseBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	root, err := sigstore.PublicGood()
	if err != nil {
		t.Fatal(err)
	}
	id := sigstore.Identity{
		Issuer: "https://token.actions.githubusercontent.com",
		URI:    "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main",
	}
	trust := &sigstore.Trust{
		Fulcio: &sigstore.Fulcio{Authorities: root.Fulcio, CT: root.CT, Identity: id},
		Rekor:  root.Rekor, Timestamp: root.Timestamp,
	}
	if err := trust.Verify(sig); err != nil {
		t.Fatal(err)
	}
	st, err := sig.Envelope.Statement()
	if err != nil || len(st.Subject) != 1 || st.Subject[0].Name != "pkg:npm/sigstore@2.0.0" {
		t.Errorf("statement %+v, %v", st, err)
	}
	trust.Fulcio.CT = trust.Fulcio.CT[:1] // the log that was retired before
	check(t, trust.Verify(sig), "no trusted certificate log")
}
