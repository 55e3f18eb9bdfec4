// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package appraisal

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/coffer-cc/coffer/kbs/rcar"
)

// parseInitData returns the digest that a TEE measured and the claims that a
// policy sees. The digest is over the text exactly as sent.
func parseInitData(d rcar.InitData) (digest []byte, claims map[string]any, err error) {
	if d.Format != "toml" {
		return nil, nil, fmt.Errorf("format %.32q is not supported; send toml", d.Format)
	}
	var doc struct {
		Version   string            `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	if err := toml.Unmarshal([]byte(d.Body), &doc); err != nil {
		return nil, nil, errors.New("body is not TOML with version, algorithm and data")
	}
	if doc.Version == "" {
		return nil, nil, errors.New("version is missing")
	}
	h, err := rcar.Hash(doc.Algorithm).New()
	if err != nil {
		return nil, nil, fmt.Errorf("algorithm %.32q is not sha256, sha384 or sha512", doc.Algorithm)
	}
	h.Write([]byte(d.Body))
	if claims, err = initDataClaims(doc.Data); err != nil {
		return nil, nil, err
	}
	return h.Sum(nil), claims, nil
}

func initDataClaims(data map[string]string) (map[string]any, error) {
	claims := make(map[string]any, len(data))
	for name, text := range data {
		switch name {
		case "aa.toml", "cdh.toml":
			var table map[string]any
			if err := toml.Unmarshal([]byte(text), &table); err != nil {
				return nil, fmt.Errorf("data %s is not TOML", name)
			}
			claims[name] = table
		case "policy.rego":
			if agent, ok := policyData(text); ok {
				claims["agent_policy_claims"] = agent
			} else {
				claims[name] = text
			}
		default:
			claims[name] = text
		}
	}
	return claims, nil
}

// policyData finds the object policy_data of a Kata agent policy.
func policyData(rego string) (map[string]any, bool) {
	const mark = "policy_data := "
	at := strings.Index(rego, mark+"{")
	if at < 0 {
		return nil, false
	}
	var object map[string]any
	if err := json.NewDecoder(strings.NewReader(rego[at+len(mark):])).Decode(&object); err != nil {
		return nil, false
	}
	return object, true
}
