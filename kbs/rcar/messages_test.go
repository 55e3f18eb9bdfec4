// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rcar

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The public key of RFC 7517 appendix A.1.
const goldenKey = `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW",` +
	`"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}`

const goldenNonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

const goldenAttestation = `{"init-data":{"format":"toml","body":"version = '0.1.0'"},"future":{"x":1},` +
	`"runtime-data":{"nonce":"` + goldenNonce + `","future":1,"tee-pubkey":` + goldenKey + `},` +
	`"tee-evidence":{"primary_evidence":{"svn":"1"},"additional_evidence":"","future":[]}}`

func TestParseAttestation(t *testing.T) {
	t.Parallel()
	got, err := ParseAttestation([]byte(goldenAttestation))
	if err != nil {
		t.Fatal(err)
	}
	want := Attestation{
		InitData: &InitData{Format: "toml", Body: "version = '0.1.0'"},
		RuntimeData: RuntimeData{Nonce: goldenNonce, TEEPubKey: PublicKey{
			KTY: "EC", CRV: "P-256", ALG: AlgECDHESA256KW,
			X: "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", Y: "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
		}},
		Evidence: Evidence{Primary: json.RawMessage(`{"svn":"1"}`)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	wire := `{"init-data":{"format":"toml","body":"version = '0.1.0'"},"runtime-data":{"nonce":"` + goldenNonce +
		`","tee-pubkey":` + goldenKey + `},"tee-evidence":{"primary_evidence":{"svn":"1"},"additional_evidence":""}}`
	if string(b) != wire {
		t.Errorf("encodes as %s", b)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	request := func(b []byte) error { _, err := ParseRequest(b); return err }
	challenge := func(b []byte) error { _, err := ParseChallenge(b); return err }
	attestation := func(b []byte) error { _, err := ParseAttestation(b); return err }
	response := func(b []byte) error { _, err := ParseResponse(b); return err }
	edit := func(from, to string) string { return strings.Replace(goldenAttestation, from, to, 1) }
	for _, c := range []struct {
		name  string
		parse func([]byte) error
		in    string
		want  string
	}{
		{"empty", request, "", "not JSON"},
		{"array", request, "[]", "not a JSON object"},
		{"no version", request, `{"tee":"tdx"}`, "version"},
		{"no tee", request, `{"version":"0.4.0"}`, "tee"},
		{"long tee", request, `{"version":"0.4.0","tee":"` + strings.Repeat("x", 65) + `"}`, "tee"},
		{"tee is a number", request, `{"version":"0.4.0","tee":1}`, "member tee"},
		{"huge", request, `{"version":"0.4.0","tee":"tdx","extra-params":"` + strings.Repeat("x", maxRequest) + `"}`, "larger"},
		{"no nonce", challenge, `{"extra-params":""}`, "nonce"},
		{"long nonce", challenge, `{"nonce":"` + strings.Repeat("x", maxNonce+1) + `"}`, "nonce"},
		{"two documents", challenge, `{"nonce":"x"}{}`, "not JSON"},
		{"nothing", attestation, "{}", "nonce"},
		{"no key type", attestation, edit(`"kty":"EC",`, ""), "kty"},
		{"no evidence", attestation, edit(`{"svn":"1"}`, "null"), "primary_evidence"},
		{"large evidence", attestation, edit(`{"svn":"1"}`, `"`+strings.Repeat("x", maxEvidence)+`"`), "evidence"},
		{"large devices", attestation, edit(`evidence":""`, `evidence":"`+strings.Repeat("x", maxEvidence+1)+`"`), "evidence"},
		{"large init-data", attestation, edit("version =", strings.Repeat("x", maxInitData)), "init-data"},
		{"no token", response, `{"token":""}`, "token"},
		{"token is an object", response, `{"token":{"a":"SECRET"}}`, "member token"},
		{"torn", response, `{"token":"SECRET`, "not JSON"},
	} {
		err := c.parse([]byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
			continue
		}
		if strings.Contains(err.Error(), "SECRET") || len(err.Error()) > 200 {
			t.Errorf("%s: error quotes its input: %v", c.name, err)
		}
	}
}

func TestChallengeHashAlgorithm(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Hash{
		`{"nonce":"n","extra-params":""}`:                                         SHA384,
		`{"nonce":"n"}`:                                                           SHA384,
		`{"nonce":"n","extra-params":null}`:                                       SHA384,
		`{"nonce":"n","extra-params":{}}`:                                         SHA384,
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":"sha512"}}`:       SHA512,
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":"SHA256","x":1}}`: SHA256,
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":""}}`:             "",
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":"sm3"}}`:          "",
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":null}}`:           "",
		`{"nonce":"n","extra-params":{"selected-hash-algorithm":384}}`:            "",
	} {
		c, err := ParseChallenge([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got, err := c.HashAlgorithm()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s selects %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestReportData(t *testing.T) {
	t.Parallel()
	a, err := ParseAttestation([]byte(goldenAttestation))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		hash             Hash
		additional, want string
	}{
		{SHA256, "", "9e1adc5aa1f2cae74b1687df60f13df3ebb28d23871fe17813ac12beb45298c5"},
		{SHA384, "", "8a6244441b1b1171b3a1d56a693d4ce116c1f9ca1ae558bc5f59d46dada54cf49e92a361ab2472c434652fed5887f16d"},
		{SHA384, "{\"nvidia\":\"é\u2028\"}", "bc996ded2f437629fb641c7103104f7e8683a240021660bdb6733c3a282b30c247dec6b08d3b4c8b1c9f70c00d12a764"},
		{SHA512, "", "f407f8640c82dd411525153d2b3fac21b53476073afb50f18006aede37f2328b8242485e60439d377a063a9d68b2a5beabc43c5198e3ca041138e5c724518ae7"},
	} {
		got, err := ReportData(c.hash, a.RuntimeData, c.additional)
		if err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%s with %q: %x, %v; want %s", c.hash, c.additional, got, err, c.want)
		}
	}
	if _, err := ReportData("md5", a.RuntimeData, ""); err == nil {
		t.Error("md5 is accepted")
	}
}

func TestError(t *testing.T) {
	t.Parallel()
	e, err := ParseError([]byte(`{"type":"` + ErrorTypePrefix + `PolicyDeny","detail":"Access denied by policy","reason":{"policy":"resource-policy","rule":"allow","expected":"affirming","got":"none","next_step":"register reference values","trace_id":"t1","new":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if e.Variant() != "PolicyDeny" || e.Detail != "Access denied by policy" {
		t.Errorf("parsed %+v", e)
	}
	const want = "policy resource-policy, rule allow: expected affirming, got none; next: register reference values (trace t1)"
	if got := e.Reason.String(); got != want {
		t.Errorf("reason %q", got)
	}
	for want, r := range map[string]*Reason{
		"":                     nil,
		"policy p":             {Policy: "p"},
		"rule r: got x":        {Rule: "r", Got: "x"},
		"expected a, got b":    {Expected: "a", Got: "b"},
		"next: do it":          {NextStep: "do it\n"},
		"rule a b; next: c  d": {Rule: "a\nb", NextStep: "c\r\nd"},
		"policy p (trace 1)":   {Policy: "p", TraceID: "1"},
	} {
		if got := r.String(); got != want {
			t.Errorf("reason %q, want %q", got, want)
		}
	}
	if got := (&Reason{Rule: strings.Repeat("é", 5000)}).String(); len(got) > 1100 {
		t.Errorf("reason of %d bytes", len(got))
	}
	if got := (Error{Type: "about:blank"}).Variant(); got != "" {
		t.Errorf("variant %q of a foreign type", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(goldenAttestation))
	f.Add([]byte(`{"version":"0.4.0","tee":"tdx","extra-params":{"supported-hash-algorithms":["sha384"]}}`))
	f.Add([]byte(`{"nonce":"n","extra-params":{"selected-hash-algorithm":"sha512"}}`))
	f.Add([]byte(`{"token":"a.b.c"}`))
	f.Add([]byte(`{"type":"x","detail":"y","reason":{"rule":"r"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseRequest(b)
		_, _ = ParseResponse(b)
		if e, err := ParseError(b); err == nil && strings.Contains(e.Reason.String(), "\n") {
			t.Error("reason has more than one line")
		}
		if c, err := ParseChallenge(b); err == nil {
			_, _ = c.HashAlgorithm()
		}
		a, err := ParseAttestation(b)
		if err != nil {
			return
		}
		once, err := ReportData(SHA384, a.RuntimeData, a.Evidence.Additional)
		if err != nil {
			t.Fatal(err)
		}
		wire, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseAttestation(wire)
		if err != nil {
			return // escaping may have made it too large
		}
		twice, err := ReportData(SHA384, again.RuntimeData, again.Evidence.Additional)
		if err != nil || string(once) != string(twice) {
			t.Fatalf("report data changes over the wire: %x, %x, %v", once, twice, err)
		}
	})
}
