// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

func TestPublicKeyECDSA(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		curve elliptic.Curve
		chars int // of a padded coordinate in base64url
	}{{elliptic.P256(), 43}, {elliptic.P521(), 88}} {
		for range 20 { // some of the coordinates begin with zeros
			priv, err := ecdsa.GenerateKey(c.curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			k, err := NewPublicKey(&priv.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			if len(k.X) != c.chars || len(k.Y) != c.chars || k.KTY != "EC" || k.ALG != AlgECDHESA256KW || k.CRV != c.curve.Params().Name {
				t.Fatalf("key %+v", k)
			}
			back, err := k.ECDSA()
			if err != nil || !back.Equal(&priv.PublicKey) {
				t.Fatalf("key comes back as %v, %v", back, err)
			}
		}
	}
}

// TestPublicKeyPadding takes a point whose x begins with a zero byte, with and
// without that byte.
func TestPublicKeyPadding(t *testing.T) {
	t.Parallel()
	var priv *ecdsa.PrivateKey
	var point []byte
	for point == nil || point[1] != 0 {
		var err error
		if priv, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
		if point, err = priv.PublicKey.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	k, err := NewPublicKey(&priv.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(k.X, "A") {
		t.Errorf("x %q lost its padding", k.X)
	}
	k.X = base64.RawURLEncoding.EncodeToString(point[2:33])
	if back, err := k.ECDSA(); err != nil || !back.Equal(&priv.PublicKey) {
		t.Errorf("unpadded key: %v", err)
	}
}

func TestPublicKeyRefuses(t *testing.T) {
	t.Parallel()
	var good PublicKey
	if err := json.Unmarshal([]byte(goldenKey), &good); err != nil {
		t.Fatal(err)
	}
	if _, err := good.ECDSA(); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*PublicKey){
		"type":          func(k *PublicKey) { k.KTY = "RSA" },
		"curve":         func(k *PublicKey) { k.CRV = "P-384" },
		"other curve":   func(k *PublicKey) { k.CRV = "P-521" },
		"off the curve": func(k *PublicKey) { k.X = k.Y },
		"no x":          func(k *PublicKey) { k.X = "" },
		"long y":        func(k *PublicKey) { k.Y = strings.Repeat("A", 60) },
		"padding":       func(k *PublicKey) { k.X += "=" },
		"infinity":      func(k *PublicKey) { k.X, k.Y = "AA", "AA" },
	} {
		k := good
		edit(&k)
		if _, err := k.ECDSA(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPublicKey(&p384.PublicKey); err == nil {
		t.Error("P-384 is accepted")
	}
}

func TestPublicKeyRSA(t *testing.T) {
	t.Parallel()
	priv, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	good := PublicKey{KTY: "RSA", ALG: AlgRSAOAEP256, N: encode(priv.N.Bytes()), E: "AQAB"}
	if got, err := good.RSA(); err != nil || !got.Equal(&priv.PublicKey) {
		t.Errorf("key comes back as %v, %v", got, err)
	}
	for name, edit := range map[string]func(*PublicKey){
		"type":   func(k *PublicKey) { k.KTY = "EC" },
		"short":  func(k *PublicKey) { k.N = encode(new(big.Int).Rsh(priv.N, 1).Bytes()) },
		"long":   func(k *PublicKey) { k.N = encode(new(big.Int).Lsh(priv.N, 8192).Bytes()) },
		"e is 1": func(k *PublicKey) { k.E = "AQ" },
		"even e": func(k *PublicKey) { k.E = "Ag" },
		"long e": func(k *PublicKey) { k.E = "AQAAAAE" },
		"no n":   func(k *PublicKey) { k.N = "" },
		"bad n":  func(k *PublicKey) { k.N = "?" },
	} {
		k := good
		edit(&k)
		if _, err := k.RSA(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzPublicKey(f *testing.F) {
	f.Add(goldenKey)
	f.Add(`{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB"}`)
	f.Fuzz(func(t *testing.T, s string) {
		var k PublicKey
		if json.Unmarshal([]byte(s), &k) != nil {
			return
		}
		_, _ = k.RSA()
		pub, err := k.ECDSA()
		if err != nil {
			return
		}
		again, err := NewPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := again.ECDSA(); err != nil || !back.Equal(pub) {
			t.Fatalf("key %q comes back as %v, %v", s, back, err)
		}
	})
}
