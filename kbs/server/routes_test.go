// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-cc/coffer/kbs/kbstest"
	"github.com/coffer-cc/coffer/kbs/server"
)

func policyBody(id, text string) []byte {
	b, _ := json.Marshal(map[string]string{"policy_id": id, "policy": base64.RawURLEncoding.EncodeToString([]byte(text))})
	return b
}

func valuesBody(values string) []byte {
	return []byte(`{"version":"0.1.0","type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(values)) + `"}`)
}

// TestRoutes is every route with its statuses. Who: n nobody, g a guest with
// a token, a an administrator.
func TestRoutes(t *testing.T) {
	t.Parallel()
	const cpu = "package policy\ntrust_claims := {\"hardware\": 2}\n"
	for _, c := range []struct {
		who, method, path string
		body              []byte
		header            string // one more header, name: value
		status            int
		variant           string
		contains          string
	}{
		{"n", "GET", "/healthz", nil, "", 200, "", ""},
		{"n", "POST", "/healthz", nil, "", 405, "InvalidRequestPath", ""},
		{"n", "GET", "/metrics", nil, "", 200, "", ""},
		{"n", "POST", "/metrics", nil, "", 405, "InvalidRequestPath", ""},
		{"n", "GET", "/.well-known/jwks.json", nil, "", 200, "", `"kid"`},
		{"n", "GET", "/", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "GET", "/kbs/v0", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "GET", "/kbs/v1/resource/a/b/c", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "GET", "/kbs/v0/pkcs11/a", nil, "", 404, "PluginNotFound", ""},
		{"n", "GET", "/kbs/v0/auth", nil, "", 405, "InvalidRequestPath", "POST"},
		{"n", "PATCH", "/kbs/v0/resource/a/b/c", nil, "", 405, "InvalidRequestPath", ""},
		{"n", "POST", "/kbs/v0/auth", nil, "", 400, "SerdeError", ""},
		{"n", "POST", "/kbs/v0/auth", []byte(`{"version":"0.4.0"}`), "", 400, "SerdeError", "tee"},
		{"n", "POST", "/kbs/v0/auth", bytes.Repeat([]byte(" "), 2<<20+1), "", 413, "PayloadTooLarge", "max_body"},
		{"n", "POST", "/kbs/v0/attest", nil, "", 401, "AttestationError", "no cookie"},
		{"n", "POST", "/kbs/v0/attest", []byte(`{`), "Cookie: kbs-session-id=x", 400, "SerdeError", ""},

		{"n", "GET", "/kbs/v0/resource/default/key/1", nil, "", 401, "TokenNotFound", "Attestation Token not found"},
		{"n", "GET", "/kbs/v0/resource/default/key/1", nil, "Authorization: Bearer x.y.z", 401, "TokenVerifierError", "attest again"},
		{"n", "GET", "/kbs/v0/resource/default/key/1", nil, "Cookie: kbs-session-id=unknown", 401, "TokenNotFound", ""},
		{"a", "GET", "/kbs/v0/resource/default/key/1", nil, "", 401, "TokenVerifierError", ""},
		{"g", "GET", "/kbs/v0/resource/default/key/1", nil, "", 200, "", `"ciphertext"`},
		{"g", "GET", "/kbs/v0/resource/default/key/none", nil, "", 404, "ResourceNotFound", "coffer kbs resource set default/key/none FILE"},
		{"g", "GET", "/kbs/v0/resource/default/key", nil, "", 400, "InvalidRequestPath", "repository/type/tag"},
		{"g", "GET", "/kbs/v0/resource/default/key/..", nil, "", 400, "InvalidRequestPath", ""},
		{"g", "GET", "/kbs/v0/resource/default/key/a%3Ab", nil, "", 400, "InvalidRequestPath", ""},
		{"g", "GET", "/kbs/v0/resource/default%2Fkey/1", nil, "", 400, "InvalidRequestPath", ""},
		{"g", "GET", "/kbs/v0/resource/default/key/%31", nil, "", 400, "InvalidRequestPath", ""},
		{"g", "GET", "/kbs/v0/resource//default/key/1", nil, "", 400, "InvalidRequestPath", ""},
		{"g", "GET", "/kbs/v0/resource/x/../default/key/1", nil, "", 400, "InvalidRequestPath", ""},
		{"n", "GET", "//kbs/v0/resource/default/key/1", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "GET", "/kbs/v0//resource/default/key/1", nil, "", 404, "PluginNotFound", ""},
		{"n", "POST", "/kbs/v0/auth/more", []byte(`{"version":"0.4.0","tee":"sample","extra-params":""}`), "", 404, "InvalidRequestPath", ""},
		{"n", "POST", "/kbs/v0/attest/more", nil, "", 404, "InvalidRequestPath", ""},

		{"n", "GET", "/kbs/v0/resource", nil, "", 401, "AdminAuthAccess", ""},
		{"g", "GET", "/kbs/v0/resource", nil, "", 401, "AdminAuthAccess", "EdDSA"},
		{"a", "GET", "/kbs/v0/resource", nil, "", 200, "", `["default/key/1"]`},
		{"n", "PUT", "/kbs/v0/resource/a/b/c", []byte("x"), "", 401, "AdminAuthAccess", "none was sent"},
		{"g", "PUT", "/kbs/v0/resource/a/b/c", []byte("x"), "", 401, "AdminAuthAccess", ""},
		{"a", "PUT", "/kbs/v0/resource/a/b/c", []byte("x"), "", 200, "", ""},
		{"a", "POST", "/kbs/v0/resource/a/b/c", []byte("x"), "", 200, "", ""},
		{"a", "PUT", "/kbs/v0/resource/a/b/c", nil, "", 400, "SerdeError", "empty"},
		{"a", "PUT", "/kbs/v0/resource/a/b", []byte("x"), "", 400, "InvalidRequestPath", ""},
		{"a", "PUT", "/kbs/v0/resource/a/b/c", bytes.Repeat([]byte("x"), 2<<20+1), "", 413, "PayloadTooLarge", ""},
		{"a", "PUT", "/kbs/v0/resource/default/key/1", []byte("x"), "If-None-Match: *", 412, "ResourceExists", ""},
		{"a", "POST", "/kbs/v0/resource/default/key/1", []byte("x"), "If-None-Match: *", 412, "ResourceExists", ""},
		{"a", "PUT", "/kbs/v0/resource/a/b/new", []byte("x"), "If-None-Match: *", 200, "", ""},
		{"a", "PUT", "/kbs/v0/resource/a/b/c", []byte("x"), `If-None-Match: "tag"`, 400, "SerdeError", ""},
		{"n", "DELETE", "/kbs/v0/resource/default/key/1", nil, "", 401, "AdminAuthAccess", ""},
		{"a", "DELETE", "/kbs/v0/resource/default/key/1", nil, "", 200, "", ""},
		{"a", "DELETE", "/kbs/v0/resource/default/key/none", nil, "", 404, "ResourceNotFound", ""},

		{"n", "GET", "/kbs/v0/resource-policy", nil, "", 401, "AdminAuthAccess", ""},
		{"a", "GET", "/kbs/v0/resource-policy", nil, "", 200, "", `["resource-policy"]`},
		{"a", "GET", "/kbs/v0/resource-policy/resource-policy", nil, "", 200, "", "package policy"},
		{"a", "GET", "/kbs/v0/resource-policy/resource-policy/versions", nil, "", 200, "", "[]"},
		{"a", "GET", "/kbs/v0/resource-policy/other", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "POST", "/kbs/v0/resource-policy", policyBody("", "package policy\nallow := true\n"), "", 401, "AdminAuthAccess", ""},
		{"a", "POST", "/kbs/v0/resource-policy", policyBody("", "package policy\nallow := true\n"), "", 200, "", ""},
		{"a", "POST", "/kbs/v0/resource-policy", policyBody("", "package policy\ndefault allow = false\nallow { true }\n"), "", 200, "", ""},
		{"a", "POST", "/kbs/v0/resource-policy", policyBody("", "package policy\nallow if {"), "", 400, "ParsePolicyError", "resource-policy.rego:"},
		{"a", "POST", "/kbs/v0/resource-policy", policyBody("", "package policy\nallow if http.send({})\n"), "", 400, "ParsePolicyError", "http.send"},
		{"a", "POST", "/kbs/v0/resource-policy", []byte(`{"policy":"+/"}`), "", 400, "SerdeError", "base64url"},
		{"a", "POST", "/kbs/v0/resource-policy", []byte(`{`), "", 400, "SerdeError", ""},
		{"a", "POST", "/kbs/v0/resource-policy/other", policyBody("", "package policy\nallow := true\n"), "", 404, "InvalidRequestPath", ""},
		{"n", "GET", "/kbs/v0/attestation-policy", nil, "", 401, "AdminAuthAccess", ""},
		{"g", "GET", "/kbs/v0/attestation-policy/default_cpu", nil, "", 401, "AdminAuthAccess", ""},
		{"a", "GET", "/kbs/v0/attestation-policy", nil, "", 200, "", `["default_cpu"]`},
		{"a", "GET", "/kbs/v0/attestation-policy/default_cpu", nil, "", 200, "", "trust_claims"},
		{"a", "GET", "/kbs/v0/attestation-policy/default_gpu", nil, "", 404, "PolicyNotFound", "default_gpu"},
		{"a", "GET", "/kbs/v0/attestation-policy/resource-policy", nil, "", 404, "InvalidRequestPath", ""},
		{"n", "POST", "/kbs/v0/attestation-policy", policyBody("default_cpu", cpu), "", 401, "AdminAuthAccess", ""},
		{"a", "POST", "/kbs/v0/attestation-policy", policyBody("default_cpu", cpu), "", 200, "", ""},
		{"a", "POST", "/kbs/v0/attestation-policy", policyBody("default", cpu), "", 400, "ParsePolicyError", "default_cpu"},
		{"a", "POST", "/kbs/v0/attestation-policy", policyBody("default_cpu", "package policy\n"), "", 400, "ParsePolicyError", "no rule trust_claims"},

		{"n", "GET", "/kbs/v0/reference-value/svn", nil, "", 401, "AdminAuthAccess", ""},
		{"a", "GET", "/kbs/v0/reference-value", nil, "", 200, "", `"launch_digest"`},
		{"a", "GET", "/kbs/v0/reference-value/svn", nil, "", 200, "", `["1"]`},
		{"a", "GET", "/kbs/v0/reference-value/sv%6E", nil, "", 200, "", `["1"]`},
		{"a", "GET", "/kbs/v0/reference-value/none", nil, "", 404, "RvpsError", ""},
		{"n", "POST", "/kbs/v0/reference-value", valuesBody(`{"a/b":1}`), "", 401, "AdminAuthAccess", ""},
		{"a", "POST", "/kbs/v0/reference-value", valuesBody(`{"a/b":1}`), "", 200, "", ""},
		{"a", "POST", "/kbs/v0/reference-value", valuesBody(`[]`), "", 400, "RvpsError", ""},
		{"a", "POST", "/kbs/v0/reference-value", []byte(`{"type":"swid","payload":""}`), "", 400, "RvpsError", "not supported"},
	} {
		t.Run(c.who+" "+c.method+" "+c.path, func(t *testing.T) {
			t.Parallel()
			s := kbstest.New(t, kbstest.Options{Sample: true})
			s.Put("default/key/1", []byte("the key"))
			var headers []string
			switch c.who {
			case "a":
				headers = admin(s)
			case "g":
				g := newGuest(t, s)
				g.handshake()
				headers = []string{"Authorization", "Bearer " + g.token}
			}
			if name, value, ok := strings.Cut(c.header, ": "); ok {
				headers = append(headers, name, value)
			}
			a := send(t, s, c.method, c.path, c.body, headers...)
			if a.status != c.status || !strings.Contains(string(a.body), c.contains) {
				t.Errorf("%d, want %d: %.300s", a.status, c.status, a.body)
			}
			if c.variant != "" {
				if e := a.problem(t); e.Variant() != c.variant {
					t.Errorf("type %s", e.Type)
				}
			}
			if a.status == http.StatusUnauthorized && a.header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			if a.status == http.StatusMethodNotAllowed && a.header.Get("Allow") == "" {
				t.Error("no Allow")
			}
		})
	}
}

func TestAdminTokens(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_ = public
	for _, ttl := range []time.Duration{0, -time.Hour, server.MaxAdminToken + time.Second} {
		if _, err := server.IssueAdminToken(private, time.Now(), ttl); err == nil {
			t.Errorf("a token for %s", ttl)
		}
	}
	s := kbstest.New(t, kbstest.Options{})
	foreign, err := server.IssueAdminToken(private, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	header, _, _ := strings.Cut(s.AdminToken, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + s.AdminToken[len(header):strings.LastIndex(s.AdminToken, ".")+1]
	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(public)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := hmac.Sign([]byte(`{"role":"admin","iat":1,"exp":9999999999}`))
	if err != nil {
		t.Fatal(err)
	}
	confused, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"foreign key": foreign, "alg none": none, "HMAC with the public key": confused,
		"cut": s.AdminToken[:len(s.AdminToken)-2], "empty": "",
	} {
		a := send(t, s, http.MethodGet, "/kbs/v0/resource", nil, "Authorization", "Bearer "+token)
		if e := a.problem(t); a.status != http.StatusUnauthorized || e.Variant() != "AdminAuthAccess" || !strings.Contains(e.Reason.NextStep, "coffer-kbs admin token") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
}

// TestForgedTokens shows that a key that a token brings along is not trusted.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	other := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("the key"))
	s.AllowAll()
	g := newGuest(t, other)
	g.handshake()
	g.s = s
	if a := g.get("default/key/1"); a.status != http.StatusUnauthorized || a.problem(t).Variant() != "TokenVerifierError" {
		t.Errorf("another service's token: %d %s", a.status, a.body)
	}
	g.s = other
	parts := strings.Split(g.token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(`"affirming"`), []byte(`"Affirming"`), 1))
	g.token = strings.Join(parts, ".")
	if a := g.get("default/key/1"); a.status != http.StatusUnauthorized {
		t.Errorf("altered token: %d %s", a.status, a.body)
	}
}

// TestTokenByJWKS verifies a token as a relying party would, and pins its
// claims.
func TestTokenByJWKS(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	g := newGuest(t, s)
	g.handshake()
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(send(t, s, http.MethodGet, "/.well-known/jwks.json", nil).body, &keys); err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(g.token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	header := jws.Signatures[0].Protected
	found := keys.Key(header.KeyID)
	if len(found) != 1 || header.JSONWebKey == nil || header.ExtraHeaders["typ"] != "JWT" {
		t.Fatalf("header %+v, keys %v", header, keys)
	}
	payload, err := jws.Verify(found[0])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims["exp"].(float64)-claims["iat"].(float64) != 300 || claims["jti"] == "" || claims["ear.coffer.sample-allowed"] != true {
		t.Errorf("claims %v", claims)
	}
	golden(t, "token.json", claims, g)
}

func FuzzAttest(f *testing.F) {
	s := kbstest.New(f, kbstest.Options{Sample: true, MaxSessions: 1 << 20})
	g := newGuest(f, s)
	g.auth()
	seed, err := json.Marshal(g.attestation())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"init-data":{"format":"toml","body":"version=\"0.1.0\"\nalgorithm=\"sha256\"\n[data]\n"},"runtime-data":{"nonce":"NONCE","tee-pubkey":{}},"tee-evidence":{"primary_evidence":{},"additional_evidence":"{}"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		g := newGuest(t, s)
		g.auth()
		body = bytes.ReplaceAll(body, []byte("NONCE"), []byte(g.nonce))
		a := send(t, s, http.MethodPost, "/kbs/v0/attest", body, g.cookieHeader()...)
		switch a.status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge:
			a.problem(t)
		default:
			t.Errorf("status %d", a.status)
		}
	})
}

func FuzzPolicyBody(f *testing.F) {
	s := kbstest.New(f, kbstest.Options{})
	f.Add(policyBody("", "package policy\nallow := true\n"))
	f.Add(policyBody("default_cpu", "package policy\ntrust_claims := {}\n"))
	f.Add([]byte(`{"policy":""}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/kbs/v0/resource-policy", "/kbs/v0/attestation-policy"} {
			a := send(t, s, http.MethodPost, path, body, admin(s)...)
			if a.status != http.StatusOK && a.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
	})
}
