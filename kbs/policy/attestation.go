// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// FindingsMember is the member of an appraisal that carries its findings.
const FindingsMember = "ear.coffer.findings"

// Claims are the trust claims of an EAR appraisal; a value lies in -128..127.
type Claims map[string]int

// claimNames are the eight trust claims of the EAR vector.
func claimNames() []string {
	return []string{
		"configuration", "executables", "file-system", "hardware",
		"instance-identity", "runtime-opaque", "sourced-data", "storage-opaque",
	}
}

// Tiers of a trust claim, in ascending gravity.
const (
	TierNone            = "none"
	TierAffirming       = "affirming"
	TierWarning         = "warning"
	TierContraindicated = "contraindicated"
)

// Tier classes the value of a trust claim.
func Tier(value int) string {
	switch {
	case value >= -1 && value <= 1:
		return TierNone
	case value >= -32 && value <= 31:
		return TierAffirming
	case value >= -96 && value <= 95:
		return TierWarning
	default:
		return TierContraindicated
	}
}

// Status is the worst tier of the claims.
func (c Claims) Status() string {
	worst := 0
	order := []string{TierNone, TierAffirming, TierWarning, TierContraindicated}
	for _, v := range c {
		worst = max(worst, slices.Index(order, Tier(v)))
	}
	return order[worst]
}

// Extension is a member that a policy adds to the appraisal.
type Extension struct {
	Name  string
	Key   int
	Value any
}

// Finding says why one trust claim is worse than affirming.
type Finding struct {
	Claim string `json:"claim"`
	Value int    `json:"value"`
	// Rule is the place in the policy and the expression that failed there.
	Rule string `json:"rule"`
	// Got is the claim's value and the reference value it did not meet.
	Got string `json:"got"`
	// Next is what would repair it.
	Next string `json:"next"`
}

// Verdict is the outcome of an attestation policy.
type Verdict struct {
	// Claims has all eight trust claims.
	Claims     Claims
	Extensions []Extension
	// Digest identifies the policy text.
	Digest   string
	Findings []Finding
}

// Appraise asks policy d what evidence with these claims earns. A policy
// that names an unknown trust claim or a value out of range is
// errdefs.ErrFailedPrecondition.
func (e *Engine) Appraise(ctx context.Context, d Document, input map[string]any) (Verdict, error) {
	p, err := e.prepare(d)
	if err != nil {
		return Verdict{}, err
	}
	q, err := newQuestion(input, map[string]any{})
	if err != nil {
		return Verdict{}, err
	}
	doc, err := e.eval(ctx, p, q)
	if err != nil {
		return Verdict{}, fmt.Errorf("policy %s: %w", d.ID, err)
	}
	v := Verdict{Digest: d.Digest()}
	if v.Claims, err = readClaims(doc["trust_claims"]); err != nil {
		return Verdict{}, fmt.Errorf("policy %s: %w: %w", d.ID, errdefs.ErrFailedPrecondition, err)
	}
	if v.Extensions, err = readExtensions(doc["extensions"]); err != nil {
		return Verdict{}, fmt.Errorf("policy %s: %w: %w", d.ID, errdefs.ErrFailedPrecondition, err)
	}
	v.Findings = e.findings(ctx, d, p, q, v.Claims)
	return v, nil
}

func (e *Engine) findings(ctx context.Context, d Document, p *program, q question, claims Claims) []Finding {
	var bad []string
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		if t := Tier(claims[name]); t == TierWarning || t == TierContraindicated {
			bad = append(bad, name)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	x, err := e.explain(ctx, d.ID, p, q)
	if err != nil {
		e.log.WarnContext(ctx, "explain appraisal", "policy", d.ID, "err", err)
	}
	out := make([]Finding, 0, len(bad))
	all := map[string]json.RawMessage{}
	for _, name := range bad {
		f := Finding{
			Claim: name, Value: claims[name], Rule: d.ID + ".rego: " + name, Got: Tier(claims[name]),
			Next: "change what the attester runs, or the attestation policy " + d.ID,
		}
		if x != nil {
			if why, ok := e.why(ctx, x, strings.ReplaceAll(name, "-", "_")); ok {
				f.Rule, f.Got = why.rule, why.sentence
				if len(why.wants) > 0 {
					f.Next = ""
				}
				maps.Copy(all, why.wants)
			}
		}
		out = append(out, f)
	}
	for i := range out { // one command registers what all of them want
		if out[i].Next == "" {
			out[i].Next = register(all)
		}
	}
	return out
}

func readClaims(v any) (Claims, error) {
	claims := Claims{}
	for _, name := range claimNames() {
		claims[name] = 0
	}
	if v == nil {
		return claims, nil
	}
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return nil, errors.New("trust_claims is not an object with at least one claim")
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if _, known := claims[name]; !known {
			return nil, fmt.Errorf("trust claim %q is none of %s", name, strings.Join(claimNames(), ", "))
		}
		n, err := integer(m[name])
		if err != nil || n < math.MinInt8 || n > math.MaxInt8 {
			return nil, fmt.Errorf("trust claim %s is not an integer in -128..127", name)
		}
		claims[name] = n
	}
	return claims, nil
}

func readExtensions(v any) ([]Extension, error) {
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("extensions is not an array")
	}
	out := make([]Extension, 0, len(list))
	for i, item := range list {
		m, _ := item.(map[string]any)
		name, _ := m["name"].(string)
		key, err := integer(m["key"])
		if name == "" || err != nil {
			return nil, fmt.Errorf("extension %d has no name or no integer key", i)
		}
		if core(name) {
			return nil, fmt.Errorf("extension %d takes the name %s, which is the service's own", i, name)
		}
		out = append(out, Extension{Name: name, Key: key, Value: m["value"]})
	}
	return out, nil
}

// core says whether a member of an appraisal is not a policy's to set.
func core(name string) bool {
	switch name {
	case "ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id", "ear.veraison.annotated-evidence":
		return true
	}
	return strings.HasPrefix(name, "ear.coffer.")
}

func integer(v any) (int, error) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, errors.New("not a number")
	}
	i, err := n.Int64()
	if err != nil || i < math.MinInt32 || i > math.MaxInt32 {
		return 0, errors.New("not a small integer")
	}
	return int(i), nil
}

// word renders a member of a reason: strings as they are, the rest as JSON.
func word(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return ""
		}
		return string(b)
	}
}
