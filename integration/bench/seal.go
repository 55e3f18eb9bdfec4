// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"hash"
	"io"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// The key-encryption key of all images, which is no secret, and its name.
const kekURI = "kbs:///default/key/bench"

func kek() []byte {
	sum := sha256.Sum256([]byte("key-encryption key of coffer's benchmark"))
	return sum[:]
}

// newRSAKey makes a pair of keys in PEM, for programs that unwrap with JWE.
func newRSAKey() (private, public []byte, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	private = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return private, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

// sealer encrypts what is written to it as ocicrypt does. The key follows from
// the seed, so that the ciphertext is always the same.
type sealer struct {
	w      io.Writer
	key    [32]byte
	nonce  []byte
	stream cipher.Stream
	mac    hash.Hash
	plain  hash.Hash
	buf    bytes.Buffer
}

func newSealer(w io.Writer, seed string) (*sealer, error) {
	s := &sealer{w: w, key: sha256.Sum256([]byte("key " + seed)), plain: sha256.New()}
	nonce := sha256.Sum256([]byte("nonce " + seed))
	s.nonce = nonce[:aes.BlockSize]
	block, err := aes.NewCipher(s.key[:])
	if err != nil {
		return nil, err
	}
	s.stream, s.mac = cipher.NewCTR(block, s.nonce), hmac.New(sha256.New, s.key[:])
	return s, nil
}

func (s *sealer) Write(b []byte) (int, error) {
	s.plain.Write(b)
	s.buf.Reset()
	s.buf.Write(b)
	s.stream.XORKeyStream(s.buf.Bytes(), s.buf.Bytes())
	s.mac.Write(s.buf.Bytes())
	_, err := s.w.Write(s.buf.Bytes())
	return len(b), err
}

// annotations wrap the key twice: for a key broker, and for the owner of an
// RSA key.
func (s *sealer) annotations(public []byte) (map[string]string, error) {
	private, err := json.Marshal(map[string]any{
		"symkey": s.key[:], "digest": hexDigest(s.plain),
		"cipheroptions": map[string][]byte{"nonce": s.nonce},
	})
	if err != nil {
		return nil, err
	}
	pubopts, err := json.Marshal(layercrypt.PublicOptions{
		Cipher: layercrypt.Cipher, HMAC: s.mac.Sum(nil), CipherOptions: map[string][]byte{},
	})
	if err != nil {
		return nil, err
	}
	packet, err := keywrap.Wrap(kek(), kekURI, private, rand.Reader)
	if err != nil {
		return nil, err
	}
	broker, err := packet.Marshal()
	if err != nil {
		return nil, err
	}
	recipient, err := jwe.NewKeyWrapper().WrapKeys(
		&config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}}, private)
	if err != nil {
		return nil, err
	}
	b64 := base64.StdEncoding.EncodeToString
	return map[string]string{
		keywrap.AnnotationKey:                   b64(broker),
		"org.opencontainers.image.enc.keys.jwe": b64(recipient),
		layercrypt.PublicOptionsKey:             b64(pubopts),
	}, nil
}
