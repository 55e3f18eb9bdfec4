// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/containers/ocicrypt/keywrap/pkcs7"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// KeyWrapper wraps a layer's private options for one or more recipients. Every
// key wrapper of ocicrypt is one.
type KeyWrapper interface {
	// GetAnnotationID returns the annotation that holds the packet.
	GetAnnotationID() string
	// WrapKeys returns the packet. It must not keep privateOptions.
	WrapKeys(parameters *config.EncryptConfig, privateOptions []byte) ([]byte, error)
}

// Recipient is somebody who will be able to decrypt the image, or a group of
// them that shares one packet.
type Recipient struct {
	wrapper    KeyWrapper
	parameters map[string][][]byte
}

// NewRecipient uses any key wrapper, with the parameters it reads.
func NewRecipient(wrapper KeyWrapper, parameters map[string][][]byte) Recipient {
	return Recipient{wrapper, parameters}
}

// JWE wraps for the owners of public keys (PEM, DER or JWK; RSA or EC). They
// share one packet. A key that cannot be used is an InvalidArgument error.
func JWE(publicKeys ...[]byte) (Recipient, error) {
	r := Recipient{jwe.NewKeyWrapper(), map[string][][]byte{"pubkeys": publicKeys}}
	for _, key := range publicKeys {
		if err := r.try("pubkeys", key); err != nil {
			return Recipient{}, invalid("not a public key that JWE can use: %s", explainPEM(key, "PUBLIC KEY", err))
		}
	}
	return r, nil
}

// PKCS7 wraps for the owners of X.509 certificates (PEM or DER; RSA). They
// share one packet. A certificate that cannot be used is an InvalidArgument error.
func PKCS7(certificates ...[]byte) (Recipient, error) {
	r := Recipient{pkcs7.NewKeyWrapper(), map[string][][]byte{"x509s": certificates}}
	for _, cert := range certificates {
		if err := r.try("x509s", cert); err != nil {
			return Recipient{}, invalid("not a certificate that PKCS#7 can use: %s", explainPEM(cert, "CERTIFICATE", err))
		}
	}
	return r, nil
}

// try wraps nothing of value, to find out early whether the key can be used.
func (r Recipient) try(parameter string, key []byte) error {
	wrapping.Lock()
	defer wrapping.Unlock()
	_, err := r.wrapper.WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{parameter: {key}}}, []byte("{}"))
	return err
}

// explainPEM says what the user gave instead of a block of the wanted type.
func explainPEM(data []byte, want string, err error) string {
	block, _ := pem.Decode(data)
	switch {
	case block == nil && bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")):
		return "the PEM block is damaged"
	case block == nil:
		return fmt.Sprintf("it is neither PEM (-----BEGIN %s-----) nor DER", want)
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return "it is a private key, which must stay secret: make the public one with openssl pkey -pubout"
	case block.Type != want:
		return fmt.Sprintf("it holds a %s, want a %s", block.Type, want)
	case strings.Contains(err.Error(), "unsupported key type"):
		return "it is neither RSA nor EC, or its size or curve is not supported"
	}
	return err.Error()
}

// wrapping serialises WrapKeys: ocicrypt's pkcs7 wrapper writes a variable of
// the library on each call.
var wrapping sync.Mutex //nolint:gochecknoglobals // guards another package's global

// wrap returns the annotations of an encrypted layer and clears its key.
func wrap(recipients []Recipient, options blockcipher.LayerBlockCipherOptions) (map[string]string, error) {
	defer clear(options.Private.SymmetricKey)
	private, err := json.Marshal(options.Private)
	if err != nil {
		return nil, fmt.Errorf("marshal private options: %w", err)
	}
	defer clear(private)
	public, err := json.Marshal(options.Public)
	if err != nil {
		return nil, fmt.Errorf("marshal public options: %w", err)
	}
	wrapping.Lock()
	defer wrapping.Unlock()
	annotations := map[string]string{layercrypt.PublicOptionsKey: base64.StdEncoding.EncodeToString(public)}
	for _, r := range recipients {
		id := r.wrapper.GetAnnotationID()
		packet, err := r.wrapper.WrapKeys(&config.EncryptConfig{Parameters: r.parameters}, private)
		if err != nil {
			return nil, fmt.Errorf("wrap layer key (%s): %w", strings.TrimPrefix(id, keysPrefix), err)
		}
		if len(packet) == 0 {
			return nil, invalid("wrap layer key: recipient of %s has no key", strings.TrimPrefix(id, keysPrefix))
		}
		list := base64.StdEncoding.EncodeToString(packet)
		if old := annotations[id]; old != "" {
			list = old + "," + list
		}
		annotations[id] = list
	}
	return annotations, nil
}
