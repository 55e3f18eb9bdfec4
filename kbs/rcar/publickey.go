// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
)

// Key agreement and encryption algorithms of a PublicKey.
const (
	AlgECDHESA256KW = "ECDH-ES+A256KW"
	AlgRSAOAEP256   = "RSA-OAEP-256"
)

// PublicKey is the TEE's ephemeral key as a JSON Web Key, with exactly the
// members that take part in the report data. Its texts are kept as sent, so
// that both sides hash the same bytes.
type PublicKey struct {
	KTY string `json:"kty,omitempty"`
	CRV string `json:"crv,omitempty"`
	ALG string `json:"alg,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

// NewPublicKey returns the JSON Web Key of a P-256 or P-521 key, for
// ECDH-ES+A256KW, with coordinates padded to the curve's size.
func NewPublicKey(pub *ecdsa.PublicKey) (PublicKey, error) {
	crv := pub.Curve.Params().Name
	if _, err := curve(crv); err != nil {
		return PublicKey{}, err
	}
	point, err := pub.Bytes()
	if err != nil {
		return PublicKey{}, fmt.Errorf("rcar: encode public key: %w", err)
	}
	xy := point[1:] // after the mark of an uncompressed point
	return PublicKey{
		KTY: "EC",
		CRV: crv,
		ALG: AlgECDHESA256KW,
		X:   base64.RawURLEncoding.EncodeToString(xy[:len(xy)/2]),
		Y:   base64.RawURLEncoding.EncodeToString(xy[len(xy)/2:]),
	}, nil
}

// ECDSA returns the point of a P-256 or P-521 key. It has been checked to lie
// on the curve. Coordinates sent without their padding are accepted.
func (k PublicKey) ECDSA() (*ecdsa.PublicKey, error) {
	if k.KTY != "EC" {
		return nil, errors.New("tee-pubkey: kty is not EC")
	}
	c, err := curve(k.CRV)
	if err != nil {
		return nil, err
	}
	size := (c.Params().BitSize + 7) / 8
	point := make([]byte, 1+2*size)
	point[0] = 4
	for i, text := range []string{k.X, k.Y} {
		b, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(b) == 0 || len(b) > size {
			return nil, fmt.Errorf("tee-pubkey: a coordinate is not base64url of at most %d bytes", size)
		}
		copy(point[1+(i+1)*size-len(b):], b)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(c, point)
	if err != nil {
		return nil, fmt.Errorf("tee-pubkey: not a point on %s", k.CRV)
	}
	return pub, nil
}

// RSA returns an RSA key of 2048 to 8192 bits.
func (k PublicKey) RSA() (*rsa.PublicKey, error) {
	if k.KTY != "RSA" {
		return nil, errors.New("tee-pubkey: kty is not RSA")
	}
	n, err := base64.RawURLEncoding.DecodeString(k.N)
	if err != nil {
		return nil, errors.New("tee-pubkey: n is not base64url")
	}
	e, err := base64.RawURLEncoding.DecodeString(k.E)
	if err != nil || len(e) > 4 {
		return nil, errors.New("tee-pubkey: e is not base64url of at most 4 bytes")
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Uint64())}
	if bits := pub.N.BitLen(); bits < 2048 || bits > 8192 {
		return nil, errors.New("tee-pubkey: RSA key does not have 2048 to 8192 bits")
	}
	if pub.E < 3 || pub.E%2 == 0 || pub.E > 1<<31-1 {
		return nil, errors.New("tee-pubkey: RSA exponent is not acceptable")
	}
	return pub, nil
}

func curve(name string) (elliptic.Curve, error) {
	switch name {
	case "P-256":
		return elliptic.P256(), nil
	case "P-521":
		return elliptic.P521(), nil
	default:
		return nil, errors.New("tee-pubkey: curve is neither P-256 nor P-521")
	}
}
