// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package appraisal_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/appraisal"
	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/coffer-cc/coffer/kbs/verifier"
	"github.com/coffer-cc/coffer/kbs/verifier/sample"
)

// seen is a Policy that keeps its input and answers with what it is given.
type seen struct {
	input   map[string]any
	verdict policy.Verdict
	err     error
}

func (s *seen) Appraise(_ context.Context, id string, input map[string]any) (policy.Verdict, error) {
	if id != "default_cpu" {
		return policy.Verdict{}, errors.New(id)
	}
	s.input = input
	return s.verdict, s.err
}

func attestation(t testing.TB, init *rcar.InitData) rcar.Attestation {
	t.Helper()
	a := rcar.Attestation{
		InitData:    init,
		RuntimeData: rcar.RuntimeData{Nonce: "nonce", TEEPubKey: rcar.PublicKey{KTY: "EC", CRV: "P-256", ALG: "ECDH-ES+A256KW", X: "x", Y: "y"}},
	}
	digest, err := rcar.ReportData(rcar.SHA384, a.RuntimeData, "")
	if err != nil {
		t.Fatal(err)
	}
	a.Evidence.Primary = json.RawMessage(`{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString(digest) + `"}`)
	return a
}

const initData = `version = "0.1.0"
algorithm = "sha256"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = "http://kbs"
'''
"policy.rego" = '''
package agent_policy
policy_data := {
  "containers": [{"OCI": {"Process": {"User": {"UID": 7}}}}]
}
more := 1
'''
"other" = "text"
`

func TestPolicyInput(t *testing.T) {
	t.Parallel()
	p := &seen{verdict: policy.Verdict{
		Claims: policy.Claims{"hardware": 2, "executables": 33}, Digest: "sha256:d",
		Extensions: []policy.Extension{{Name: "x.y", Key: 1, Value: "z"}},
		Findings:   []policy.Finding{{Claim: "executables", Value: 33, Rule: "r", Got: "g", Next: "n"}},
	}}
	s := appraisal.New(verifier.Set{"sample": sample.Verifier{}}, p, appraisal.Options{})
	got, err := s.Appraise(t.Context(), "sample", rcar.SHA384, attestation(t, &rcar.InitData{Format: "toml", Body: initData}))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(initData))
	b, err := json.Marshal(map[string]any{"input": p.input, "submods": got.Submods, "status": got.Status})
	if err != nil {
		t.Fatal(err)
	}
	reportData := p.input["report_data"].(string)
	text := strings.NewReplacer(reportData, "REPORT", base64.StdEncoding.EncodeToString(digest[:]), "INIT").Replace(string(b))
	const evidence = `{"init_data":"INIT","init_data_claims":{"aa.toml":{"token_configs":{"kbs":{"url":"http://kbs"}}},` +
		`"agent_policy_claims":{"containers":[{"OCI":{"Process":{"User":{"UID":7}}}}]},"other":"text"},"report_data":"REPORT",` +
		`"runtime_data_claims":{"additional-evidence":"","nonce":"nonce","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"x","y":"y"}},` +
		`"sample":{"debug":false,"launch_digest":"abcde","platform_version":{"major":1,"minor":4},"svn":"1"}}`
	const want = `{"input":` + evidence + `,"status":"warning","submods":{"cpu0":{"ear.appraisal-policy-id":"default",` +
		`"ear.coffer.appraisal-policy-digest":"sha256:d","ear.coffer.findings":[{"claim":"executables","value":33,"rule":"r","got":"g","next":"n"}],` +
		`"ear.status":"warning","ear.trustworthiness-vector":{"executables":33,"hardware":2},"ear.veraison.annotated-evidence":` + evidence + `,"x.y":"z"}}}`
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	all := verifier.Set{"sample": sample.Verifier{}}
	for _, c := range []struct {
		name   string
		set    verifier.Set
		tee    string
		change func(*rcar.Attestation)
		policy error
		class  func(error) bool
		rule   string
	}{
		{"sample off", verifier.Set{}, "sample", nil, nil, errdefs.IsUnauthorized, "sample evidence allowed"},
		{"unknown tee", all, "sgx", nil, nil, errdefs.IsNotImplemented, "tee is supported"},
		{"additional evidence", all, "sample", func(a *rcar.Attestation) { a.Evidence.Additional = `{"nvidia":{}}` }, nil, errdefs.IsNotImplemented, "no additional evidence"},
		{"other key", all, "sample", func(a *rcar.Attestation) { a.RuntimeData.TEEPubKey.X = "z" }, nil, errdefs.IsUnauthorized, "evidence is genuine"},
		{"other nonce", all, "sample", func(a *rcar.Attestation) { a.RuntimeData.Nonce = "z" }, nil, errdefs.IsUnauthorized, "evidence is genuine"},
		{"broken policy", all, "sample", nil, errdefs.ErrFailedPrecondition, errdefs.IsFailedPrecondition, "attestation policy default_cpu can be evaluated"},
		{"store away", all, "sample", nil, errdefs.ErrUnavailable, errdefs.IsUnavailable, ""},
		{"init-data json", all, "sample", func(a *rcar.Attestation) { a.InitData = &rcar.InitData{Format: "json", Body: "{}"} }, nil, errdefs.IsInvalidArgument, ""},
		{"init-data text", all, "sample", func(a *rcar.Attestation) { a.InitData = &rcar.InitData{Format: "toml", Body: "="} }, nil, errdefs.IsInvalidArgument, ""},
		{"init-data md5", all, "sample", func(a *rcar.Attestation) {
			a.InitData = &rcar.InitData{Format: "toml", Body: "version='1'\nalgorithm='md5'\n"}
		}, nil, errdefs.IsInvalidArgument, ""},
		{"init-data version", all, "sample", func(a *rcar.Attestation) { a.InitData = &rcar.InitData{Format: "toml", Body: "algorithm='sha256'\n"} }, nil, errdefs.IsInvalidArgument, ""},
		{"init-data aa.toml", all, "sample", func(a *rcar.Attestation) {
			a.InitData = &rcar.InitData{Format: "toml", Body: "version='1'\nalgorithm='sha256'\n[data]\n'aa.toml'='='\n"}
		}, nil, errdefs.IsInvalidArgument, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := attestation(t, nil)
			if c.change != nil {
				c.change(&a)
			}
			p := &seen{verdict: policy.Verdict{Claims: policy.Claims{"hardware": 2}}, err: c.policy}
			_, err := appraisal.New(c.set, p, appraisal.Options{}).Appraise(t.Context(), c.tee, rcar.SHA384, a)
			if err == nil || !c.class(err) {
				t.Fatalf("class of %v", err)
			}
			var refusal *appraisal.Refusal
			if errors.As(err, &refusal) != (c.rule != "") || refusal != nil && (refusal.Rule != c.rule || refusal.Next == "" || refusal.Expected == "") {
				t.Errorf("refusal %+v", refusal)
			}
		})
	}
}

func FuzzInitData(f *testing.F) {
	f.Add(initData)
	f.Add("version='1'\nalgorithm='sha512'\n[data]\n'policy.rego'='policy_data := {'\n")
	s := appraisal.New(verifier.Set{"sample": sample.Verifier{}}, &seen{verdict: policy.Verdict{Claims: policy.Claims{"hardware": 2}}}, appraisal.Options{})
	f.Fuzz(func(t *testing.T, body string) {
		_, err := s.Appraise(t.Context(), "sample", rcar.SHA384, attestation(t, &rcar.InitData{Format: "toml", Body: body}))
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

// TestInitDataIsBounded sends texts that take up to half a minute to parse, or
// that nest too deep for what comes after.
func TestInitDataIsBounded(t *testing.T) {
	t.Parallel()
	const head = "version = '1'\nalgorithm = 'sha256'\n"
	var keys strings.Builder
	for i := 0; keys.Len() < 1<<20-100; i++ {
		fmt.Fprintf(&keys, "k%d = 1\n", i)
	}
	s := appraisal.New(verifier.Set{"sample": sample.Verifier{}}, &seen{}, appraisal.Options{})
	for name, body := range map[string]string{
		"keys":        head + keys.String(),
		"keys within": head + "[data]\n'aa.toml' = \"\"\"\n" + keys.String() + "\"\"\"\n",
		"arrays":      head + "x = " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"dots":        head + strings.Repeat("a.", 5000) + "a = 1",
	} {
		a := attestation(t, &rcar.InitData{Format: "toml", Body: body})
		if _, err := s.Appraise(t.Context(), "sample", rcar.SHA384, a); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "more than 4096 keys") {
			t.Errorf("%s: %.200v", name, err)
		}
	}
}
