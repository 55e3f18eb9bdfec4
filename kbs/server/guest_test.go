// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs/kbstest"
	"github.com/coffer-cc/coffer/kbs/rcar"
)

// guest is an attester that speaks the protocol by hand.
type guest struct {
	t      testing.TB
	s      *kbstest.Server
	key    crypto.PrivateKey
	public rcar.PublicKey
	cookie *http.Cookie
	nonce  string
	token  string
}

func newGuest(t testing.TB, s *kbstest.Server) *guest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := rcar.NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return &guest{t: t, s: s, key: key, public: public}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) problem(t testing.TB) rcar.Error {
	t.Helper()
	e, err := rcar.ParseError(a.body)
	if err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, a.body, err)
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	if e.Reason == nil || e.Reason.TraceID == "" {
		t.Errorf("no trace id in %s", a.body)
	}
	return e
}

// send makes a request. headers are names and values in turn.
func send(t testing.TB, s *kbstest.Server, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: b}
}

func admin(s *kbstest.Server) []string {
	return []string{"Authorization", "Bearer " + s.AdminToken}
}

// auth opens a session.
func (g *guest) auth() {
	g.t.Helper()
	a := send(g.t, g.s, http.MethodPost, "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"sample","extra-params":{}}`))
	c, err := rcar.ParseChallenge(a.body)
	if err != nil || a.status != http.StatusOK {
		g.t.Fatalf("auth: %d %s %v", a.status, a.body, err)
	}
	g.nonce = c.Nonce
	cookies, err := http.ParseSetCookie(a.header.Get("Set-Cookie"))
	if err != nil {
		g.t.Fatal(err)
	}
	g.cookie = cookies
}

// attestation is the message that answers the challenge.
func (g *guest) attestation() rcar.Attestation {
	g.t.Helper()
	rd := rcar.RuntimeData{Nonce: g.nonce, TEEPubKey: g.public}
	digest, err := rcar.ReportData(rcar.SHA384, rd, "")
	if err != nil {
		g.t.Fatal(err)
	}
	e, err := json.Marshal(evidence.SampleEvidence{SVN: "1", ReportData: digest})
	if err != nil {
		g.t.Fatal(err)
	}
	return rcar.Attestation{RuntimeData: rd, Evidence: rcar.Evidence{Primary: e}}
}

func (g *guest) attest(a rcar.Attestation) answer {
	g.t.Helper()
	body, err := json.Marshal(a)
	if err != nil {
		g.t.Fatal(err)
	}
	return send(g.t, g.s, http.MethodPost, "/kbs/v0/attest", body, g.cookieHeader()...)
}

func (g *guest) cookieHeader() []string {
	return []string{"Cookie", g.cookie.Name + "=" + g.cookie.Value}
}

// handshake gets a token.
func (g *guest) handshake() {
	g.t.Helper()
	g.auth()
	a := g.attest(g.attestation())
	r, err := rcar.ParseResponse(a.body)
	if err != nil || a.status != http.StatusOK {
		g.t.Fatalf("attest: %d %s %v", a.status, a.body, err)
	}
	g.token = r.Token
}

// get asks for a resource with the bearer token.
func (g *guest) get(path string) answer {
	g.t.Helper()
	return send(g.t, g.s, http.MethodGet, "/kbs/v0/resource/"+path, nil, "Authorization", "Bearer "+g.token)
}

// open decrypts a released resource.
func (g *guest) open(a answer, alg jose.KeyAlgorithm) []byte {
	g.t.Helper()
	if a.status != http.StatusOK {
		g.t.Fatalf("status %d: %s", a.status, a.body)
	}
	jwe, err := jose.ParseEncryptedJSON(string(a.body), []jose.KeyAlgorithm{alg}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		g.t.Fatal(err)
	}
	plain, err := jwe.Decrypt(g.key)
	if err != nil {
		g.t.Fatal(err)
	}
	return plain
}

// golden compares claims with testdata/name, with what differs from run to
// run replaced. UPDATE_GOLDEN=1 writes the file.
func golden(t *testing.T, name string, claims map[string]any, g *guest) {
	t.Helper()
	claims["iat"], claims["exp"], claims["jti"] = 1, 2, "JTI"
	claims["ear.verifier-id"].(map[string]any)["build"] = "BUILD"
	got, err := json.MarshalIndent(claims, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	evidence := claims["submods"].(map[string]any)["cpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)
	for from, to := range map[string]string{
		g.nonce: "NONCE", g.public.X: "X", g.public.Y: "Y", evidence["report_data"].(string): "REPORT_DATA",
	} {
		got = bytes.ReplaceAll(got, []byte(from), []byte(to))
	}
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}
