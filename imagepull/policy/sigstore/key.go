// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	minRSABits = 2048
	maxRSABits = 8192
)

// ParsePublicKey reads one PEM public key: ECDSA on P-256, P-384 or P-521,
// RSA of 2048 to 8192 bits, or Ed25519. Anything after it is an error, since
// two readers might not agree which of two keys counts.
func ParsePublicKey(b []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, errors.New("not a PEM public key")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more than one PEM block: give each key on its own")
	}
	switch block.Type {
	case "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, errors.New("PEM public key cannot be read")
		}
		return key, checkKey(key)
	case "RSA PUBLIC KEY":
		key, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return nil, errors.New("PEM RSA public key cannot be read")
		}
		return key, checkKey(key)
	}
	return nil, fmt.Errorf("PEM block is a %q, not a public key", clip(block.Type))
}

// checkKey refuses kinds and sizes of keys that are not checked here.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("ECDSA on curve %s: use P-256", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA key of %d bits: use %d to %d", n, minRSABits, maxRSABits)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("keys of type %T are not supported", key)
}

// parseCertificate reads what may come from anybody.
func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("not an X.509 certificate")
	}
	return c, checkSize(c)
}

// checkSize refuses a key whose use takes minutes, which is what a chain of
// somebody's own could be made of.
func checkSize(c *x509.Certificate) error {
	if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return fmt.Errorf("RSA key of %d bits: at most %d are checked", k.N.BitLen(), maxRSABits)
	}
	return nil
}

// ParseCertificates reads PEM certificates, at least one. Other PEM blocks and
// text that is none are errors.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(b); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not PEM certificates alone")
		}
		cert, err := parseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
		if len(certs) > maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate")
	}
	return certs, nil
}

// verifyBlob checks a signature over message. The hash goes with the key:
// SHA-256 as cosign uses for all keys, or the curve's own as sigstore's newer
// tools do; Ed25519 is pure or prehashed with SHA-512.
func verifyBlob(key crypto.PublicKey, message, signature []byte) error {
	var good bool
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		for _, h := range hashesOf(k) {
			good = good || ecdsa.VerifyASN1(k, sum(h, message), signature)
		}
	case *rsa.PublicKey:
		d := sum(crypto.SHA256, message)
		good = rsa.VerifyPKCS1v15(k, crypto.SHA256, d, signature) == nil ||
			rsa.VerifyPSS(k, crypto.SHA256, d, signature, nil) == nil
	case ed25519.PublicKey:
		good = ed25519.Verify(k, message, signature) ||
			ed25519.VerifyWithOptions(k, sum(crypto.SHA512, message), signature, &ed25519.Options{Hash: crypto.SHA512}) == nil
	}
	if !good {
		return errors.New("the signature does not fit the key")
	}
	return nil
}

func hashesOf(k *ecdsa.PublicKey) []crypto.Hash {
	switch k.Curve {
	case elliptic.P384():
		return []crypto.Hash{crypto.SHA256, crypto.SHA384}
	case elliptic.P521():
		return []crypto.Hash{crypto.SHA256, crypto.SHA512}
	}
	return []crypto.Hash{crypto.SHA256}
}

func sum(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}

// clip shortens text that came from outside for use in an error.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
