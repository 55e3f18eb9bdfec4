// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
)

// Hash names the hash function of the report data.
type Hash string

// The hash functions of the protocol. SHA384 is meant where none is named.
const (
	SHA256 Hash = "sha256"
	SHA384 Hash = "sha384"
	SHA512 Hash = "sha512"
)

// New returns a new hash, or an error if h is not a hash of the protocol.
func (h Hash) New() (hash.Hash, error) {
	switch h {
	case SHA256:
		return sha256.New(), nil
	case SHA384:
		return sha512.New384(), nil
	case SHA512:
		return sha512.New(), nil
	default:
		return nil, fmt.Errorf("rcar: hash algorithm %q is not supported", string(h))
	}
}

// HashAlgorithm returns the hash the service selected, SHA384 if it selected
// none. Names are compared without regard to case. A selection that is empty,
// unknown or not a string is an error.
func (c Challenge) HashAlgorithm() (Hash, error) {
	const member = "selected-hash-algorithm"
	var params map[string]json.RawMessage
	if err := json.Unmarshal(c.ExtraParams, &params); err != nil {
		return SHA384, nil //nolint:nilerr // services send "" or nothing where they have no parameters
	}
	raw, ok := params[member]
	if !ok {
		return SHA384, nil
	}
	var name *string
	if err := json.Unmarshal(raw, &name); err != nil || name == nil {
		return "", errors.New("rcar challenge: " + member + " is not a string")
	}
	h := Hash(strings.ToLower(*name))
	if _, err := h.New(); err != nil {
		return "", err
	}
	return h, nil
}

// ReportData returns the digest, of the hash's own length, that the TEE's
// evidence must carry: h over the canonical JSON of the runtime data and the
// additional evidence, which takes part even when it is empty.
func ReportData(h Hash, rd RuntimeData, additional string) ([]byte, error) {
	d, err := h.New()
	if err != nil {
		return nil, err
	}
	b, err := CanonicalJSON(map[string]any{
		"additional-evidence": additional,
		"nonce":               rd.Nonce,
		"tee-pubkey":          rd.TEEPubKey,
	})
	if err != nil {
		return nil, err
	}
	d.Write(b)
	return d.Sum(nil), nil
}
