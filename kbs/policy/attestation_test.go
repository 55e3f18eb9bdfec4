// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/policy"
)

// memory is the smallest policy.Storage.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func newMemory() *memory { return &memory{m: map[string][]byte{}} }

func (m *memory) Get(_ context.Context, ns, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.m[ns+" "+key]; ok {
		return v, nil
	}
	return nil, errdefs.ErrNotFound
}

func (m *memory) Put(_ context.Context, ns, key string, v []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.m[ns+" "+key] = v
	return nil
}

func (m *memory) List(_ context.Context, ns string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(m.m)) {
		if rest, ok := strings.CutPrefix(k, ns+" "); ok {
			keys = append(keys, rest)
		}
	}
	return keys, nil
}

func sampleClaims() object {
	return object{"sample": object{
		"svn": "1", "launch_digest": "abcde", "debug": false,
		"platform_version": object{"major": 1, "minor": 4},
	}}
}

func sampleRefs() refs {
	return refs{"launch_digest": []any{"abcde"}, "svn": []any{"1"}, "major_version": 1, "minimum_minor_version": 4}
}

func TestDefaultAttestationPolicyOnSample(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		change   func(object, refs)
		status   string
		findings []policy.Finding
	}{
		{"all known", func(object, refs) {}, "affirming", nil},
		{"unknown digest", func(_ object, r refs) { r["launch_digest"] = []any{"x"} }, "warning", []policy.Finding{{
			Claim: "executables", Value: 33,
			Rule: `default_cpu.rego:28: input.sample.launch_digest in query_reference_value("launch_digest")`,
			Got:  "launch_digest abcde is not in reference value launch_digest [x]",
			Next: `if you trust it, register the measurement: echo '{"launch_digest":["x","abcde"]}' | coffer kbs reference-value set -`,
		}}},
		{"nothing registered", func(_ object, r refs) { clear(r) }, "contraindicated", []policy.Finding{{
			Claim: "executables", Value: 33,
			Rule: `default_cpu.rego:28: input.sample.launch_digest in query_reference_value("launch_digest")`,
			Got:  "launch_digest abcde: no reference value launch_digest is registered, or it has expired",
			Next: `if you trust it, register the measurement: echo '{"launch_digest":["abcde"],"major_version":1,"minimum_minor_version":4,"svn":["1"]}' | coffer kbs reference-value set -`,
		}, {
			Claim: "hardware", Value: 97,
			Rule: `default_cpu.rego:33: input.sample.svn in query_reference_value("svn")`,
			Got:  "svn 1: no reference value svn is registered, or it has expired",
			Next: `if you trust it, register the measurement: echo '{"launch_digest":["abcde"],"major_version":1,"minimum_minor_version":4,"svn":["1"]}' | coffer kbs reference-value set -`,
		}}},
		{"minor version missing", func(_ object, r refs) { delete(r, "minimum_minor_version") }, "contraindicated", []policy.Finding{{
			Claim: "hardware", Value: 97,
			Rule: `default_cpu.rego:36: is_number(minimum)`,
			Got:  "no reference value minimum_minor_version is registered, or it has expired",
			Next: `if you trust it, register the measurement: echo '{"minimum_minor_version":4}' | coffer kbs reference-value set -`,
		}}},
		{"minor version too low", func(_ object, r refs) { r["minimum_minor_version"] = 5 }, "contraindicated", []policy.Finding{{
			Claim: "hardware", Value: 97,
			Rule: `default_cpu.rego:37: input.sample.platform_version.minor >= minimum`,
			Got:  "platform_version.minor 4 is less than reference value minimum_minor_version 5",
			Next: `if you trust it, register the measurement: echo '{"minimum_minor_version":4}' | coffer kbs reference-value set -`,
		}}},
		{"debug", func(o object, _ refs) { o["sample"].(object)["debug"] = true }, "warning", []policy.Finding{{
			Claim: "configuration", Value: 36,
			Rule: `default_cpu.rego:42: input.sample.debug == false`,
			Got:  "debug true is not false",
			Next: "change what the attester runs, or the attestation policy default_cpu",
		}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			claims, r := sampleClaims(), sampleRefs()
			c.change(claims, r)
			got, err := library(t, r).Appraise(t.Context(), "default_cpu", claims)
			if err != nil {
				t.Fatal(err)
			}
			if got.Claims.Status() != c.status || len(got.Claims) != 8 {
				t.Errorf("status %s of %v", got.Claims.Status(), got.Claims)
			}
			if diff := cmp.Diff(c.findings, got.Findings); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDefaultAttestationPolicyOnTDX(t *testing.T) {
	t.Parallel()
	claims := func(change func(tdx object)) object {
		tdx := object{
			"quote": object{
				"header": object{"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
				"body":   object{"mr_td": "aa", "rtmr_1": "bb", "rtmr_2": "cc", "xfam": "e7"},
			},
			"td_attributes": object{"debug": false}, "tcb_status": "UpToDate", "collateral_expiration_status": "0",
			"uefi_event_logs": []any{
				object{"type_name": "EV_EFI_BOOT_SERVICES_APPLICATION", "details": object{"device_paths": []any{"File(kernel)"}}, "digests": []any{object{"digest": "k"}}},
				object{"type_name": "EV_EVENT_TAG", "details": object{"string": "LOADED_IMAGE::LoadOptions"}, "digests": []any{object{"digest": "p"}}},
			},
		}
		change(tdx)
		return object{"tdx": tdx}
	}
	known := refs{
		"mr_td": []any{"aa"}, "rtmr_1": []any{"bb"}, "rtmr_2": []any{"cc"}, "xfam": []any{"e7"},
		"tdvfkernel": "k", "tdvfkernelparams": "p",
	}
	for _, c := range []struct {
		name                                 string
		change                               func(object)
		executables, hardware, configuration int
	}{
		{"full", func(object) {}, 3, 2, 2},
		{"no event log", func(o object) { delete(o, "uefi_event_logs") }, 4, 2, 2},
		{"other kernel", func(o object) { o["uefi_event_logs"] = []any{} }, 4, 2, 2},
		{"no collateral", func(o object) { delete(o, "tcb_status") }, 3, 97, 2},
		{"debug", func(o object) { o["td_attributes"] = object{"debug": true} }, 3, 2, 36},
		{"other rtmr", func(o object) { o["quote"].(object)["body"].(object)["rtmr_2"] = "zz" }, 33, 2, 2},
		{"other td", func(o object) { o["quote"].(object)["body"].(object)["mr_td"] = "zz" }, 3, 97, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := library(t, known).Appraise(t.Context(), "default_cpu", claims(c.change))
			if err != nil {
				t.Fatal(err)
			}
			have := [3]int{got.Claims["executables"], got.Claims["hardware"], got.Claims["configuration"]}
			if want := [3]int{c.executables, c.hardware, c.configuration}; have != want {
				t.Errorf("have %v, want %v; %+v", have, want, got.Findings)
			}
		})
	}
}

// TestOldText takes a policy written for Rego v0.
func TestOldText(t *testing.T) {
	t.Parallel()
	l := library(t, sampleRefs())
	_, err := l.SetAttestation(t.Context(), "default_cpu", `package policy

default executables = 33

executables = 3 {
	digests := query_reference_value("launch_digest")
	input.sample.launch_digest == digests[_]
	input.sample.svn == "2"
}

trust_claims = {"executables": executables, "file-system": 2}
`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Appraise(t.Context(), "default_cpu", sampleClaims())
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Finding{{
		Claim: "executables", Value: 33, Rule: `default_cpu.rego:8: input.sample.svn == "2"`,
		Got: "svn 1 is not 2", Next: "change what the attester runs, or the attestation policy default_cpu",
	}}
	if diff := cmp.Diff(want, got.Findings); diff != "" || got.Claims["file-system"] != 2 {
		t.Error(diff, got.Claims)
	}
}

func TestTrustClaimsAreChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ claims, want string }{
		"unknown name": {`{"hardwear": 2}`, "is none of"},
		"too large":    {`{"hardware": 258}`, "not an integer in -128..127"},
		"too small":    {`{"hardware": -129}`, "not an integer in -128..127"},
		"fraction":     {`{"hardware": 1.5}`, "not an integer"},
		"text":         {`{"hardware": "2"}`, "not an integer"},
		"empty":        {`{}`, "at least one claim"},
		"array":        {`[1]`, "not an object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := library(t, nil)
			if _, err := l.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := "+c.claims+"\n"); err != nil {
				t.Fatal(err)
			}
			_, err := l.Appraise(t.Context(), "default_cpu", sampleClaims())
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
}

func TestExtensions(t *testing.T) {
	t.Parallel()
	set := func(text string) (policy.Verdict, error) {
		l := library(t, nil)
		if _, err := l.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := "+text+"\n"); err != nil {
			t.Fatal(err)
		}
		return l.Appraise(t.Context(), "default_cpu", sampleClaims())
	}
	if v, err := set(`[{"name": "x.y", "key": -1, "value": [1]}]`); err != nil || len(v.Extensions) != 1 || v.Extensions[0].Key != -1 {
		t.Errorf("%+v %v", v, err)
	}
	for _, bad := range []string{`[{"name": "ear.status", "key": 1, "value": "affirming"}]`, `[{"key": 1}]`, `{}`} {
		if _, err := set(bad); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestTier(t *testing.T) {
	t.Parallel()
	for v, want := range map[int]string{
		-128: "contraindicated", -97: "contraindicated", -96: "warning", -33: "warning", -32: "affirming", -2: "affirming",
		-1: "none", 0: "none", 1: "none", 2: "affirming", 31: "affirming", 32: "warning", 95: "warning", 96: "contraindicated",
	} {
		if got := policy.Tier(v); got != want {
			t.Errorf("%d: %s, want %s", v, got, want)
		}
	}
}

// FuzzPolicyText feeds policy texts: they are refused or evaluated, and the
// explanation of a denial never fails.
func FuzzPolicyText(f *testing.F) {
	f.Add("package policy\nallow if { input.submods.cpu0[\"ear.status\"] == \"affirming\" }\n")
	f.Add("package policy\nallow { every x in input.submods { x } }\n")
	f.Add("package policy\ndefault allow = false\nallow { not input.x; y := [z | z = data.query[_]]; count(y) > 1 }\n")
	f.Fuzz(func(t *testing.T, text string) {
		l := policy.NewLibrary(policy.NewEngine(refs{"x": 1}, policy.Options{}), newMemory())
		if _, err := l.SetResource(t.Context(), text); err != nil {
			return
		}
		d, err := l.Allow(t.Context(), request(), token("warning"))
		if err == nil && d.Allowed == (d.Reason != nil) {
			t.Error("a denial without reason, or a reason without denial")
		}
	})
}

func BenchmarkAllow(b *testing.B) {
	l := policy.NewLibrary(policy.NewEngine(refs{}, policy.Options{}), newMemory())
	for _, status := range []string{"affirming", "warning"} {
		b.Run(status, func(b *testing.B) {
			for b.Loop() {
				if _, err := l.Allow(b.Context(), request(), token(status)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
