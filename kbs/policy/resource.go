// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-cc/coffer/kbs/rcar"
)

// Request is what a resource policy is asked about.
type Request struct {
	// Plugin is the first step of the request path: "resource".
	Plugin string
	// Path is the rest of it, step by step.
	Path []string
	// Query holds the query parameters.
	Query map[string]string
}

// Decision is the answer of a resource policy.
type Decision struct {
	Allowed bool
	// Policy and Digest say which text decided.
	Policy, Digest string
	// Reason explains a denial; nil when allowed. It shows the values that
	// the policy looked at, so only the holder of the token may see it.
	Reason *rcar.Reason
}

// Allow asks policy d whether the holder of a token with these claims may
// have what r names. Anything but `allow == true` denies. A policy that
// cannot be evaluated denies too, with the error as reason; only a store or
// time limit that failed is an error, of class errdefs.ErrUnavailable.
func (e *Engine) Allow(ctx context.Context, d Document, r Request, token map[string]any) (Decision, error) {
	decision := Decision{Policy: d.ID, Digest: d.Digest()}
	p, err := e.prepare(d)
	if err != nil {
		return decision, err
	}
	q, err := newQuestion(token, r.data())
	if err != nil {
		return decision, err
	}
	doc, err := e.eval(ctx, p, q)
	switch {
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err), ctx.Err() != nil:
		return decision, fmt.Errorf("policy %s: %w", d.ID, err)
	case err != nil:
		decision.Reason = broken(d, err)
		return decision, nil
	}
	if allow, ok := doc["allow"].(bool); ok && allow {
		decision.Allowed = true
		return decision, nil
	}
	decision.Reason = e.reason(ctx, d, p, q, doc)
	return decision, nil
}

func (r Request) data() map[string]any {
	path := make([]any, len(r.Path))
	for i, s := range r.Path {
		path[i] = s
	}
	query := make(map[string]any, len(r.Query))
	for k, v := range r.Query {
		query[k] = v
	}
	return map[string]any{"plugin": r.Plugin, "resource-path": path, "query": query}
}

func broken(d Document, err error) *rcar.Reason {
	return &rcar.Reason{
		Policy:   d.ID,
		Rule:     "the policy can be evaluated",
		Expected: "a policy without runtime errors",
		Got:      err.Error(),
		NextStep: "correct the policy and set it again: coffer kbs resource-policy set FILE",
	}
}

// reason is what the policy itself says, or else what its trace says.
func (e *Engine) reason(ctx context.Context, d Document, p *program, q question, doc map[string]any) *rcar.Reason {
	if own := ownReason(doc["reasons"]); own != nil {
		own.Policy = d.ID
		return own
	}
	out := &rcar.Reason{
		Policy: d.ID, Rule: "allow", Expected: "allow to be true", Got: "it is not",
		NextStep: "change the resource policy: coffer kbs resource-policy set FILE",
	}
	x, err := e.explain(ctx, d.ID, p, q)
	if err != nil {
		e.log.WarnContext(ctx, "explain denial", "policy", d.ID, "err", err)
		return out
	}
	f, ok := e.why(ctx, x, "allow")
	if !ok {
		return out
	}
	out.Rule, out.Expected, out.Got = f.rule, f.expected, f.got
	switch {
	case len(f.wants) > 0:
		out.NextStep = register(f.wants)
	case len(findings(q)) > 0:
		out.Got += " (" + strings.Join(findings(q), "; ") + ")"
		out.NextStep = "meet the appraisal's conditions, or change the resource policy: coffer kbs resource-policy set FILE"
	default:
		out.NextStep = "meet the condition, or change the resource policy: coffer kbs resource-policy set FILE"
	}
	return out
}

// findings are the appraisal's own explanations in the token.
func findings(q question) []string {
	x, err := ast.JSON(q.input)
	if err != nil {
		return nil
	}
	token, _ := x.(map[string]any)
	submods, _ := token["submods"].(map[string]any)
	var out []string
	for name, s := range submods {
		submod, _ := s.(map[string]any)
		list, _ := submod[FindingsMember].([]any)
		for _, f := range list {
			finding, _ := f.(map[string]any)
			out = append(out, fmt.Sprintf("%s: %v %v: %v", name, finding["claim"], finding["value"], finding["got"]))
		}
	}
	slices.Sort(out)
	return out
}

// ownReason reads the rule `reasons` of a policy: a set of objects with the
// members rule, expected, got and next.
func ownReason(v any) *rcar.Reason {
	list, _ := v.([]any)
	var all []rcar.Reason
	for _, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			continue
		}
		r := rcar.Reason{Rule: word(m["rule"]), Expected: word(m["expected"]), Got: word(m["got"]), NextStep: word(m["next"])}
		if r != (rcar.Reason{}) {
			all = append(all, r)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b rcar.Reason) int {
		return strings.Compare(a.Rule+"\x00"+a.Got, b.Rule+"\x00"+b.Got)
	})
	first := all[0]
	for _, r := range all[1:] {
		if r.Rule != first.Rule {
			first.Rule = join(first.Rule, r.Rule)
			first.Expected = join(first.Expected, r.Expected)
		}
		first.Got = join(first.Got, r.Got)
		first.NextStep = join(first.NextStep, r.NextStep)
	}
	return &first
}

func join(a, b string) string {
	if b == "" || strings.Contains(a, b) {
		return a
	}
	if a == "" {
		return b
	}
	return a + "; " + b
}
