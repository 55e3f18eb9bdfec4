// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	josecipher "github.com/go-jose/go-jose/v4/cipher"

	"github.com/coffer-cc/coffer/kbs/rcar"
)

const (
	cekSize = 32
	kekSize = 32
)

// recipient encrypts to one TEE key.
type recipient struct {
	ec  *ecdsa.PublicKey
	rsa *rsa.PublicKey
}

// recipientOf checks a TEE key. Its alg must be the one for its kind.
func recipientOf(k rcar.PublicKey) (recipient, error) {
	switch k.ALG {
	case rcar.AlgECDHESA256KW:
		pub, err := k.ECDSA()
		return recipient{ec: pub}, err
	case rcar.AlgRSAOAEP256:
		pub, err := k.RSA()
		return recipient{rsa: pub}, err
	default:
		return recipient{}, fmt.Errorf("tee-pubkey: alg %.32q is not supported; use %s or %s", k.ALG, rcar.AlgECDHESA256KW, rcar.AlgRSAOAEP256)
	}
}

// recipientIn finds the TEE key in the claims of a token.
func recipientIn(claims map[string]any) (recipient, error) {
	var at any = claims
	for _, step := range []string{"submods", "cpu0", "ear.veraison.annotated-evidence", "runtime_data_claims", "tee-pubkey"} {
		m, ok := at.(map[string]any)
		if !ok {
			return recipient{}, errors.New("token has no tee-pubkey")
		}
		at = m[step]
	}
	b, err := json.Marshal(at)
	if err != nil {
		return recipient{}, err
	}
	var key rcar.PublicKey
	if err := json.Unmarshal(b, &key); err != nil {
		return recipient{}, errors.New("tee-pubkey of the token is not a JWK")
	}
	return recipientOf(key)
}

// Deployed clients re-serialise the header that they parsed to authenticate
// it. So its members come in exactly this order, and go-jose, which sorts
// the members of epk otherwise, does not write it.
type protectedHeader struct {
	Alg string        `json:"alg"`
	Enc string        `json:"enc"`
	EPK *ephemeralKey `json:"epk,omitempty"`
}

type ephemeralKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// flattened is a JWE in flattened JSON serialisation.
type flattened struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// seal encrypts with A256GCM under a fresh key, and the key to the recipient.
func (to recipient) seal(plaintext []byte) ([]byte, error) {
	cek := make([]byte, cekSize)
	defer clear(cek)
	_, _ = rand.Read(cek) // never fails
	header, wrapped, err := to.wrap(cek)
	if err != nil {
		return nil, err
	}
	protected, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, aead.NonceSize())
	_, _ = rand.Read(iv) // never fails
	enc := base64.RawURLEncoding.EncodeToString
	aad := enc(protected)
	sealed := aead.Seal(nil, iv, plaintext, []byte(aad))
	cut := len(sealed) - aead.Overhead()
	return json.Marshal(flattened{
		Protected: aad, EncryptedKey: enc(wrapped), IV: enc(iv), Ciphertext: enc(sealed[:cut]), Tag: enc(sealed[cut:]),
	})
}

// wrap encrypts the content key to the recipient.
func (to recipient) wrap(cek []byte) (protectedHeader, []byte, error) {
	if to.rsa != nil {
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, to.rsa, cek, nil)
		return protectedHeader{Alg: rcar.AlgRSAOAEP256, Enc: "A256GCM"}, wrapped, err
	}
	ephemeral, err := ecdsa.GenerateKey(to.ec.Curve, rand.Reader)
	if err != nil {
		return protectedHeader{}, nil, err
	}
	public, err := rcar.NewPublicKey(&ephemeral.PublicKey)
	if err != nil {
		return protectedHeader{}, nil, err
	}
	kek := josecipher.DeriveECDHES(rcar.AlgECDHESA256KW, nil, nil, ephemeral, to.ec, kekSize)
	defer clear(kek)
	block, err := aes.NewCipher(kek)
	if err != nil {
		return protectedHeader{}, nil, err
	}
	wrapped, err := josecipher.KeyWrap(block, cek)
	return protectedHeader{
		Alg: rcar.AlgECDHESA256KW, Enc: "A256GCM",
		EPK: &ephemeralKey{CRV: public.CRV, KTY: public.KTY, X: public.X, Y: public.Y},
	}, wrapped, err
}
