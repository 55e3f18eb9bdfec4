// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package appraisal

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

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
	if err := parseTOML(d.Body, &doc); err != nil {
		return nil, nil, fmt.Errorf("body is not TOML with version, algorithm and data: %w", err)
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
		case "aa.toml", "cdh.toml", "guest.toml":
			var table map[string]any
			if err := parseTOML(text, &table); err != nil {
				return nil, fmt.Errorf("data %s is not TOML: %w", name, err)
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

// maxKeys bounds the keys, their parts and the nesting of a TOML text: what it
// costs to parse grows with the square of their number, and the text is parsed
// before its sender is known.
const maxKeys = 4096

func parseTOML(text string, into any) error {
	var p unstable.Parser
	p.Reset([]byte(text))
	for left := maxKeys; p.NextExpression(); {
		if left -= countKeys(p.Expression()); left < 0 {
			return fmt.Errorf("it has more than %d keys", maxKeys)
		}
	}
	if p.Error() != nil || toml.Unmarshal([]byte(text), into) != nil {
		return errors.New("it does not parse") // the library's errors quote the text
	}
	return nil
}

func countKeys(n *unstable.Node) int {
	count := 0
	if n.Kind == unstable.Key || n.Kind == unstable.Array || n.Kind == unstable.InlineTable {
		count++
	}
	for children := n.Children(); children.Next(); {
		count += countKeys(children.Node())
	}
	return count
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
