// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"strings"

	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/go-jose/go-jose/v4"
)

// decrypt opens a resource: a flattened JWE for key. Only the protected header
// counts, and it is authenticated as it was received. Errors quote nothing.
func decrypt(body []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	var parts struct {
		Protected    string `json:"protected"`
		EncryptedKey string `json:"encrypted_key"`
		IV           string `json:"iv"`
		Ciphertext   string `json:"ciphertext"`
		Tag          string `json:"tag"`
	}
	if err := json.Unmarshal(body, &parts); err != nil {
		return nil, errors.New("resource is not a JWE")
	}
	compact := strings.Join([]string{parts.Protected, parts.EncryptedKey, parts.IV, parts.Ciphertext, parts.Tag}, ".")
	jwe, err := jose.ParseEncryptedCompact(compact, []jose.KeyAlgorithm{rcar.AlgECDHESA256KW}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, errors.New("resource is not a JWE with " + rcar.AlgECDHESA256KW + " and A256GCM")
	}
	plain, err := jwe.Decrypt(key)
	if err != nil {
		return nil, errors.New("resource does not open with the key that was attested")
	}
	return plain, nil
}
