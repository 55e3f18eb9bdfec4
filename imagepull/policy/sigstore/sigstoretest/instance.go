// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package sigstoretest is a sigstore instance for tests: an authority like
// Fulcio with a certificate log, a log like Rekor, a timestamp authority, all
// in this process with keys made on the spot. It signs what cosign signs, and
// what nobody should accept.
//
// It is for tests only; nothing that is shipped imports it.
package sigstoretest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Hosts of the instance, as they stand in its trusted root.
const (
	rekorURL = "https://rekor.sigstore.test"
	ctURL    = "https://ctfe.sigstore.test"
	tsaURL   = "https://tsa.sigstore.test"
)

// Instance is one sigstore. Its methods fail tb's test instead of returning
// errors.
type Instance struct {
	tb testing.TB

	Root, Intermediate *x509.Certificate // Fulcio's
	intermediateKey    *ecdsa.PrivateKey
	tsaRoot, tsa       *x509.Certificate
	tsaKey, tsaRootKey *ecdsa.PrivateKey
	rekorKey, ctKey    *ecdsa.PrivateKey
}

// New makes an instance.
func New(tb testing.TB) *Instance {
	tb.Helper()
	i := &Instance{tb: tb}
	var rootKey *ecdsa.PrivateKey
	i.Root, rootKey = i.issue(authority("sigstore test root"), nil, nil)
	middle := authority("sigstore test intermediate")
	middle.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	i.Intermediate, i.intermediateKey = i.issue(middle, i.Root, rootKey)
	i.tsaRoot, i.tsaRootKey = i.issue(authority("tsa test root"), nil, nil)
	i.SetTimestamper(true)
	i.rekorKey, i.ctKey = NewKey(tb), NewKey(tb)
	return i
}

// SetTimestamper gives the timestamp authority another certificate: one as it
// must be, or one whose usage is not critical.
func (i *Instance) SetTimestamper(fit bool) {
	i.tb.Helper()
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	i.must(err)
	i.tsa, i.tsaKey = i.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "tsa test"}, NotBefore: long().NotBefore, NotAfter: long().NotAfter,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: fit, Value: usage}},
	}, i.tsaRoot, i.tsaRootKey)
}

// NewKey makes an ECDSA key.
func NewKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func (i *Instance) must(err error) {
	i.tb.Helper()
	if err != nil {
		i.tb.Fatal(err)
	}
}

// validity is a template's.
type validity struct{ NotBefore, NotAfter time.Time }

func long() validity {
	now := time.Now().Truncate(time.Second)
	return validity{NotBefore: now.AddDate(-2, 0, 0), NotAfter: now.AddDate(2, 0, 0)}
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{"sigstore.test"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign,
		NotBefore: long().NotBefore, NotAfter: long().NotAfter,
	}
}

// issue makes a key and a certificate for it; parent nil signs itself.
func (i *Instance) issue(t, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	i.tb.Helper()
	key := NewKey(i.tb)
	if parent == nil {
		parent, parentKey = t, key
	}
	return i.certify(t, parent, &key.PublicKey, parentKey), key
}

func (i *Instance) certify(t, parent *x509.Certificate, key crypto.PublicKey, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	i.tb.Helper()
	if t.SerialNumber == nil {
		serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		i.must(err)
		t.SerialNumber = serial
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key, parentKey)
	i.must(err)
	cert, err := x509.ParseCertificate(der)
	i.must(err)
	return cert
}

// Identity is whom a certificate is for.
type Identity struct {
	Issuer, Email, URI string
	// From is when the certificate begins to be valid, for ten minutes.
	From time.Time
	// NoSCT leaves out the certificate log's promise.
	NoSCT bool
	// Usage replaces code signing.
	Usage []x509.ExtKeyUsage
}

// Certificate makes a key and Fulcio's certificate for it.
func (i *Instance) Certificate(id Identity) (*x509.Certificate, *ecdsa.PrivateKey) {
	i.tb.Helper()
	issuer, err := asn1.MarshalWithParams(id.Issuer, "utf8")
	i.must(err)
	t := &x509.Certificate{
		NotBefore: id.From.Truncate(time.Second), NotAfter: id.From.Truncate(time.Second).Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(id.Issuer)},
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: issuer},
		},
	}
	if id.Usage != nil {
		t.ExtKeyUsage = id.Usage
	}
	if id.Email != "" {
		t.EmailAddresses = []string{id.Email}
	}
	if id.URI != "" {
		u, err := url.Parse(id.URI)
		i.must(err)
		t.URIs = []*url.URL{u}
	}
	key := NewKey(i.tb)
	cert := i.certify(t, i.Intermediate, &key.PublicKey, i.intermediateKey)
	if id.NoSCT {
		return cert, key
	}
	// The same once more, with the promise to hold the first.
	t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{
		Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: i.promise(cert, id.From),
	})
	return i.certify(t, i.Intermediate, &key.PublicKey, i.intermediateKey), key
}

// promise is the certificate log's list of one SCT, over the certificate
// without any.
func (i *Instance) promise(cert *x509.Certificate, at time.Time) []byte {
	i.tb.Helper()
	issuer := sha256.Sum256(i.Intermediate.RawSubjectPublicKeyInfo)
	var signed cryptobyte.Builder
	signed.AddUint16(0)
	signed.AddUint64(uint64(at.UnixMilli()))
	signed.AddUint16(1)
	signed.AddBytes(issuer[:])
	signed.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(cert.RawTBSCertificate) })
	signed.AddUint16(0)
	signature := Sign(i.tb, i.ctKey, signed.BytesOrPanic())
	var list cryptobyte.Builder
	list.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(0)
			b.AddBytes(KeyID(i.tb, i.ctKey))
			b.AddUint64(uint64(at.UnixMilli()))
			b.AddUint16(0)
			b.AddUint8(4) // SHA-256
			b.AddUint8(3) // ECDSA
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(signature) })
		})
	})
	out, err := asn1.Marshal(list.BytesOrPanic())
	i.must(err)
	return out
}

// KeyID is the SHA-256 of the public key.
func KeyID(tb testing.TB, k *ecdsa.PrivateKey) []byte {
	tb.Helper()
	id := sha256.Sum256(publicDER(tb, k))
	return id[:]
}

func publicDER(tb testing.TB, k *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// PublicPEM is the public key in PEM.
func PublicPEM(tb testing.TB, k *ecdsa.PrivateKey) []byte {
	tb.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(tb, k)})
}

// CertPEM is the certificates in PEM.
func CertPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Sign signs with SHA-256.
func Sign(tb testing.TB, k *ecdsa.PrivateKey, message []byte) []byte {
	tb.Helper()
	d := sha256.Sum256(message)
	s, err := ecdsa.SignASN1(rand.Reader, k, d[:])
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// RekorPEM is Rekor's public key.
func (i *Instance) RekorPEM() []byte { return PublicPEM(i.tb, i.rekorKey) }
