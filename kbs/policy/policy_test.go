// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rcar"
)

// refs are reference values in memory.
type refs map[string]any

func (r refs) ReferenceValue(_ context.Context, name string) (any, error) {
	v, ok := r[name]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	if err, ok := v.(error); ok {
		return nil, err
	}
	return v, nil
}

type object = map[string]any

func token(status string, findings ...any) object {
	submod := object{"ear.status": status}
	if len(findings) > 0 {
		submod["ear.coffer.findings"] = findings
	}
	return object{"submods": object{"cpu0": submod}}
}

func request() policy.Request {
	return policy.Request{Plugin: "resource", Path: []string{"default", "key", "1"}}
}

func library(t *testing.T, r refs) *policy.Library {
	t.Helper()
	return policy.NewLibrary(policy.NewEngine(r, policy.Options{}), newMemory())
}

func TestDefaultResourcePolicy(t *testing.T) {
	t.Parallel()
	finding := object{
		"claim": "executables", "value": 33,
		"got":  "launch_digest abcde is not in reference value launch_digest [x]",
		"next": `if you trust it, register the measurement: echo '{"launch_digest":["x","abcde"]}' | coffer kbs reference-value set -`,
	}
	for _, c := range []struct {
		name  string
		token object
		want  *rcar.Reason
	}{
		{"affirming", token("affirming"), nil},
		{"contraindicated", token("contraindicated", finding), &rcar.Reason{
			Policy: "resource-policy", Rule: "every submod ear.status is affirming", Expected: "affirming",
			Got:      "cpu0: contraindicated (executables 33: launch_digest abcde is not in reference value launch_digest [x])",
			NextStep: `if you trust it, register the measurement: echo '{"launch_digest":["x","abcde"]}' | coffer kbs reference-value set -`,
		}},
		{"none without findings", token("none"), &rcar.Reason{
			Policy: "resource-policy", Rule: "every submod ear.status is affirming", Expected: "affirming",
			Got: "cpu0: none", NextStep: "look at the attestation policy named in the token",
		}},
		{"one of two", object{"submods": object{
			"cpu0": object{"ear.status": "affirming"}, "gpu0": object{"ear.status": "warning"},
		}}, &rcar.Reason{
			Policy: "resource-policy", Rule: "every submod ear.status is affirming", Expected: "affirming",
			Got: "gpu0: warning", NextStep: "look at the attestation policy named in the token",
		}},
		{"no submod", object{"submods": object{}}, &rcar.Reason{
			Policy: "resource-policy", Rule: "there is at least one submod", Expected: "a token with at least one submod",
			Got: "none", NextStep: "attest again and use the token that the service issued",
		}},
		{"status missing", object{"submods": object{"cpu0": object{}}}, &rcar.Reason{
			Policy: "resource-policy", Rule: "every submod ear.status is affirming", Expected: "affirming",
			Got: "cpu0: no ear.status", NextStep: "look at the attestation policy named in the token",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := library(t, nil).Allow(t.Context(), request(), c.token)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.Reason); diff != "" || got.Allowed != (c.want == nil) {
				t.Errorf("allowed %v, reason: %s", got.Allowed, diff)
			}
		})
	}
}

// TestExplain pins what the trace of any policy is turned into.
// TestExplanationEnds denies with bodies that define their variables in a
// circle.
func TestExplanationEnds(t *testing.T) {
	t.Parallel()
	e := policy.NewEngine(refs{}, policy.Options{})
	for _, body := range []string{
		"some k, v in input; k == v",
		"some x, y; x = y; y = x; x = input.foo; x == 2",
		"some i, x in input.list; x == i; i == 5",
	} {
		d := policy.Document{ID: policy.ResourceID, Text: "package policy\nimport rego.v1\nallow if { " + body + " }\n"}
		got, err := e.Allow(t.Context(), d, policy.Request{Plugin: "resource"}, map[string]any{"foo": "1", "list": []any{1, 0, 7}, "x": "y"})
		if err != nil || !got.Allowed && (got.Reason == nil || got.Reason.Rule == "") {
			t.Errorf("%s: %+v %v", body, got, err)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	const change = "meet the condition, or change the resource policy: coffer kbs resource-policy set FILE"
	for _, c := range []struct {
		name, text                string
		rule, expected, got, next string
	}{
		{
			"trustee v0 text, iteration", "package policy\ndefault allow = false\nallow {\n  data.plugin == \"resource\"\n  ok(input.submods)\n}\nok(s) {\n  count(s) > 0\n  x := s[_][\"ear.status\"]\n  x == \"affirming\"\n}\n",
			`resource-policy.rego:10: x == "affirming"`, "s.cpu0.ear.status to be affirming", "s.cpu0.ear.status warning", change,
		},
		{
			"every", "package policy\nallow if {\n  count(input.submods) > 0\n  every s in input.submods { s[\"ear.status\"] == \"affirming\" }\n}\n",
			`resource-policy.rego:4: s["ear.status"] == "affirming"`, "s.ear.status to be affirming", "s.ear.status warning", change,
		},
		{
			"best of several rules", "package policy\nallow if data.plugin == \"other\"\nallow if {\n  data.plugin == \"resource\"\n  data[\"resource-path\"][0] == \"prod\"\n}\n",
			`resource-policy.rego:5: data["resource-path"][0] == "prod"`, "resource-path.0 to be prod", "resource-path.0 default", change,
		},
		{
			"undefined member", "package policy\nallow if input.submods.gpu0[\"ear.status\"] == \"affirming\"\n",
			`resource-policy.rego:2: input.submods.gpu0["ear.status"] == "affirming"`,
			`input.submods.gpu0["ear.status"] == "affirming" to be defined`, "submods.gpu0.ear.status is not there", change,
		},
		{
			"membership in a reference value", "package policy\nallow if data[\"resource-path\"][2] in query_reference_value(\"tags\")\n",
			`resource-policy.rego:2: data["resource-path"][2] in query_reference_value("tags")`,
			"resource-path.2 to be one of [7, 8]", "resource-path.2 1",
			`if you trust it, register the measurement: echo '{"tags":["7","8","1"]}' | coffer kbs reference-value set -`,
		},
		{
			"reference value missing", "package policy\nallow if data[\"resource-path\"][2] in query_reference_value(\"none\")\n",
			`resource-policy.rego:2: data["resource-path"][2] in query_reference_value("none")`,
			"reference value none to be registered", "no reference value none is registered, or it has expired",
			`if you trust it, register the measurement: echo '{"none":["1"]}' | coffer kbs reference-value set -`,
		},
		{
			"negation", "package policy\nallow if {\n  not data.plugin == \"resource\"\n}\n",
			`resource-policy.rego:3: not data.plugin == "resource"`, `not data.plugin == "resource"`, "the opposite holds", change,
		},
		{
			"deny all", "package policy\ndefault allow = false\n",
			"resource-policy.rego:2: default allow = false", "allow to be true", "no rule of the policy makes it so", change,
		},
		{
			"deny all, assigned", "package policy\nallow := false\n",
			"resource-policy.rego:2: allow := false", "allow to be true", "allow is false", change,
		},
		{
			"value of a comparison", "package policy\nallow := data.plugin == \"vault\"\n",
			`resource-policy.rego:2: data.plugin == "vault"`, "plugin to be vault", "plugin resource", change,
		},
		{
			"rule of the policy", "package policy\nallow if trusted\ntrusted if {\n  data.plugin == \"resource\"\n  data.query.version == \"2\"\n}\n",
			`resource-policy.rego:5: data.query.version == "2"`, `data.query.version == "2" to be defined`, "query.version is not there", change,
		},
		{
			"own reasons win", "package policy\nallow := false\nreasons contains {\"rule\": \"closed\", \"expected\": 1, \"got\": \"2\", \"next\": \"wait\"}\n",
			"closed", "1", "2", "wait",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := library(t, refs{"tags": []any{"7", "8"}})
			if _, err := l.SetResource(t.Context(), c.text); err != nil {
				t.Fatal(err)
			}
			got, err := l.Allow(t.Context(), request(), token("warning"))
			if err != nil || got.Allowed {
				t.Fatal(got.Allowed, err)
			}
			want := &rcar.Reason{Policy: "resource-policy", Rule: c.rule, Expected: c.expected, Got: c.got, NextStep: c.next}
			if diff := cmp.Diff(want, got.Reason); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExplanationNamesTheFinding(t *testing.T) {
	t.Parallel()
	l := library(t, nil)
	if _, err := l.SetResource(t.Context(), "package policy\nallow if input.submods.cpu0[\"ear.status\"] == \"affirming\"\n"); err != nil {
		t.Fatal(err)
	}
	got, err := l.Allow(t.Context(), request(), token("warning", object{"claim": "hardware", "value": 97, "got": "svn 1 is not in reference value svn [2]"}))
	if err != nil || got.Reason == nil {
		t.Fatal(err)
	}
	if want := "submods.cpu0.ear.status warning (cpu0: hardware 97: svn 1 is not in reference value svn [2])"; got.Reason.Got != want {
		t.Errorf("got %q", got.Reason.Got)
	}
}

func TestRefusedPolicies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {" \n", "empty"},
		"syntax":          {"package policy\nallow if {\n", "resource-policy.rego:"},
		"wrong package":   {"package other\nallow := true\n", "write package policy"},
		"no allow":        {"package policy\ndefault deny := true\n", "no rule allow"},
		"unknown builtin": {"package policy\nallow if frobnicate(1)\n", "frobnicate"},
		"http.send":       {"package policy\nallow if http.send({\"url\": \"http://127.0.0.1\", \"method\": \"get\"})\n", "undefined function http.send"},
		"opa.runtime":     {"package policy\nallow if opa.runtime().env.HOME\n", "undefined function opa.runtime"},
		"net.lookup":      {"package policy\nallow if net.lookup_ip_addr(\"localhost\")\n", "undefined function net.lookup_ip_addr"},
		"too long":        {"package policy\n#" + strings.Repeat("x", 1<<20), "larger than"},
		"v0 too":          {"package policy\nallow { http.send({}) }\n", "undefined function http.send"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := library(t, nil)
			_, err := l.SetResource(t.Context(), c.text)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
			if h, err := l.History(t.Context(), policy.ResourceID); err != nil || len(h) != 0 {
				t.Errorf("history %v %v", h, err)
			}
		})
	}
}

func TestBrokenAndSlowPolicies(t *testing.T) {
	t.Parallel()
	l := library(t, nil)
	if _, err := l.SetResource(t.Context(), "package policy\nallow := true if data.plugin\nallow := false if data.plugin\n"); err != nil {
		t.Fatal(err)
	}
	got, err := l.Allow(t.Context(), request(), token("affirming"))
	if err != nil || got.Allowed || !strings.Contains(got.Reason.Got, "conflict") {
		t.Errorf("conflict: %+v %v", got, err)
	}
	slow := policy.NewEngine(refs{}, policy.Options{Timeout: 10 * time.Millisecond})
	_, err = slow.Allow(t.Context(), policy.Document{ID: "p", Text: "package policy\nallow if count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == 0]) > 0\n"}, request(), token("affirming"))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("slow: %v", err)
	}
}

func TestReferenceValueStoreFails(t *testing.T) {
	t.Parallel()
	l := library(t, refs{"x": errdefs.ErrUnavailable})
	if _, err := l.SetResource(t.Context(), "package policy\nallow if not query_reference_value(\"x\")\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Allow(t.Context(), request(), token("affirming")); got.Allowed || !errdefs.IsUnavailable(err) {
		t.Errorf("allowed %v: %v", got.Allowed, err)
	}
}

func TestHistoryAndDefaults(t *testing.T) {
	t.Parallel()
	l := library(t, nil)
	if d, err := l.Resource(t.Context()); err != nil || !strings.Contains(d.Text, "affirming") {
		t.Errorf("default: %v", err)
	}
	for _, text := range []string{"package policy\nallow := true\n", "package policy\nallow := false\n"} {
		if _, err := l.SetResource(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := l.History(t.Context(), policy.ResourceID); err != nil || len(h) != 2 || !strings.Contains(h[0], "/sha256:") {
		t.Errorf("history %v %v", h, err)
	}
	if _, err := l.SetAttestation(t.Context(), "default", "package policy\ntrust_claims := {}\n"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "default_cpu") {
		t.Errorf("id default: %v", err)
	}
	if ids, err := l.Attestations(t.Context()); err != nil || !cmp.Equal(ids, []string{"default_cpu"}) {
		t.Errorf("ids %v %v", ids, err)
	}
	if _, err := l.Attestation(t.Context(), "default_gpu"); !errdefs.IsNotFound(err) {
		t.Errorf("no gpu policy: %v", err)
	}
}
