// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/kbs/kbstest"
	"github.com/coffer-cc/coffer/kbs/rcar"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

func TestRelease(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("the key"))
	g := newGuest(t, s)
	g.handshake()
	if got := g.open(g.get("default/key/1"), jose.ECDH_ES_A256KW); string(got) != "the key" {
		t.Errorf("bearer: %q", got)
	}
	a := send(t, s, http.MethodGet, "/kbs/v0/resource/default/key/1", nil, g.cookieHeader()...)
	if got := g.open(a, jose.ECDH_ES_A256KW); string(got) != "the key" {
		t.Errorf("cookie: %q", got)
	}
	if s.Handshakes() != 1 {
		t.Errorf("%d handshakes", s.Handshakes())
	}
	if !g.cookie.HttpOnly || g.cookie.Path != "/" || g.cookie.Secure || len(g.cookie.Value) != 32 {
		t.Errorf("cookie %v", g.cookie)
	}
}

func TestCookieOfATLSService(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true, TLS: true})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/kbs/v0/auth", strings.NewReader(`{"version":"0.4.0","tee":"sample","extra-params":""}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if cookies := resp.Cookies(); len(cookies) != 1 || !cookies[0].Secure {
		t.Errorf("cookies %v", cookies)
	}
}

// TestProtectedHeader pins the bytes that deployed clients re-serialise.
func TestProtectedHeader(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("the key"))
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk521, err := rcar.NewPublicKey(&p521.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	jwkRSA := rcar.PublicKey{KTY: "RSA", ALG: "RSA-OAEP-256", N: enc(rsaKey.N.Bytes()), E: enc(big.NewInt(int64(rsaKey.E)).Bytes())}
	const epk = `^\{"alg":"ECDH-ES\+A256KW","enc":"A256GCM","epk":\{"crv":"%s","kty":"EC","x":"[\w-]{%d}","y":"[\w-]{%d}"\}\}$`
	p256 := newGuest(t, s)
	for _, c := range []struct {
		name   string
		g      *guest
		alg    jose.KeyAlgorithm
		header string
	}{
		{"P-256", p256, jose.ECDH_ES_A256KW, fmt.Sprintf(epk, "P-256", 43, 43)},
		{"P-521", &guest{t: t, s: s, key: p521, public: jwk521}, jose.ECDH_ES_A256KW, fmt.Sprintf(epk, "P-521", 88, 88)},
		{"RSA", &guest{t: t, s: s, key: rsaKey, public: jwkRSA}, jose.RSA_OAEP_256, `^\{"alg":"RSA-OAEP-256","enc":"A256GCM"\}$`},
	} {
		c.g.handshake()
		a := c.g.get("default/key/1")
		if got := c.g.open(a, c.alg); string(got) != "the key" {
			t.Errorf("%s: %q", c.name, got)
		}
		var members map[string]string
		if err := json.Unmarshal(a.body, &members); err != nil {
			t.Fatal(err)
		}
		header, err := base64.RawURLEncoding.DecodeString(members["protected"])
		if err != nil || !regexp.MustCompile(c.header).Match(header) {
			t.Errorf("%s: header %s %v", c.name, header, err)
		}
		if len(members) != 5 {
			t.Errorf("%s: members %v", c.name, members)
		}
	}
}

func TestNonceIsUsedOnce(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	for _, c := range []struct {
		name  string
		first func(g *guest) rcar.Attestation
		want  int
	}{
		{"after success", (*guest).attestation, http.StatusOK},
		{"after failure", func(g *guest) rcar.Attestation {
			a := g.attestation()
			a.Evidence.Primary = json.RawMessage(`{"svn":"1","report_data":"b3RoZXI="}`)
			return a
		}, http.StatusUnauthorized},
		{"after another nonce", func(g *guest) rcar.Attestation {
			a := g.attestation()
			a.RuntimeData.Nonce = "other"
			return a
		}, http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, s)
			g.auth()
			if a := g.attest(c.first(g)); a.status != c.want {
				t.Fatalf("first: %d %s", a.status, a.body)
			}
			a := g.attest(g.attestation())
			if e := a.problem(t); a.status != http.StatusUnauthorized || !strings.Contains(e.Detail, "already answered") {
				t.Errorf("second: %d %s", a.status, a.body)
			}
		})
	}
}

func TestMalformedAttestationKeepsTheNonce(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	g := newGuest(t, s)
	g.auth()
	for _, body := range []string{``, `{`, `[]`, `{"runtime-data":{}}`, `{"runtime-data":{"nonce":"x","tee-pubkey":{"kty":"EC","crv":"P-384","alg":"ECDH-ES+A256KW","x":"AA","y":"AA"}},"tee-evidence":{"primary_evidence":{}}}`} {
		if a := send(t, s, http.MethodPost, "/kbs/v0/attest", []byte(body), g.cookieHeader()...); a.status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", body, a.status, a.body)
		}
	}
	if a := g.attest(g.attestation()); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestParallelAttest(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	g := newGuest(t, s)
	g.auth()
	message := g.attestation()
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if a := g.attest(message); a.status == http.StatusOK {
				won.Add(1)
			} else if a.status != http.StatusUnauthorized {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 8 succeeded", won.Load())
	}
}

// clock is a clock that a test moves.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) forward(d time.Duration) { c.offset.Add(int64(d)) }

func TestExpiry(t *testing.T) {
	t.Parallel()
	c := &clock{}
	s := kbstest.New(t, kbstest.Options{Sample: true, Now: c.now, SessionLifetime: time.Minute, TokenLifetime: 2 * time.Minute})
	s.Put("default/key/1", []byte("the key"))
	g := newGuest(t, s)
	g.handshake()
	late := newGuest(t, s)
	late.auth()
	c.forward(61 * time.Second)
	if a := late.attest(late.attestation()); a.status != http.StatusUnauthorized || !strings.Contains(a.problem(t).Detail, "expired") {
		t.Errorf("expired session: %d %s", a.status, a.body)
	}
	a := send(t, s, http.MethodGet, "/kbs/v0/resource/default/key/1", nil, g.cookieHeader()...)
	if e := a.problem(t); a.status != http.StatusUnauthorized || e.Variant() != "TokenNotFound" {
		t.Errorf("cookie of an expired session: %d %s", a.status, a.body)
	}
	g.open(g.get("default/key/1"), jose.ECDH_ES_A256KW)
	c.forward(60 * time.Second)
	if a := g.get("default/key/1"); a.status != http.StatusUnauthorized || a.problem(t).Variant() != "TokenVerifierError" || !strings.Contains(a.problem(t).Detail, "expired at") {
		t.Errorf("expired token: %d %s", a.status, a.body)
	}
	c.forward(time.Hour)
	if a := send(t, s, http.MethodGet, "/kbs/v0/resource", nil, admin(s)...); a.status != http.StatusUnauthorized || !strings.Contains(a.problem(t).Detail, "expired at") {
		t.Errorf("expired admin token: %d %s", a.status, a.body)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	t.Parallel()
	c := &clock{}
	s := kbstest.New(t, kbstest.Options{Sample: true, MaxSessions: 2, SessionLifetime: time.Minute, Now: c.now})
	first, second, third := newGuest(t, s), newGuest(t, s), newGuest(t, s)
	first.auth()
	second.auth()
	third.auth()
	if a := first.attest(first.attestation()); a.status != http.StatusUnauthorized || !strings.Contains(a.problem(t).Detail, "no session") {
		t.Errorf("the oldest: %d %s", a.status, a.body)
	}
	for _, g := range []*guest{second, third} {
		if a := g.attest(g.attestation()); a.status != http.StatusOK {
			t.Errorf("a younger one: %d %s", a.status, a.body)
		}
	}
	request := []byte(`{"version":"0.4.0","tee":"sample","extra-params":""}`)
	a := send(t, s, http.MethodPost, "/kbs/v0/auth", request)
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" || a.problem(t).Variant() != "TooManyRequests" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	c.forward(time.Minute)
	newGuest(t, s).auth()
}

func TestVersionsAndTEEs(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	for version, want := range map[string]int{
		"0.2.0": 200, "0.3.1": 200, "0.4.0": 200, "0.4.7": 200,
		"0.1.1": 400, "0.5.0": 400, "1.0.0": 400, "0.4": 400, "x": 400, "0.4.0-rc": 400,
	} {
		a := send(t, s, http.MethodPost, "/kbs/v0/auth", []byte(`{"version":"`+version+`","tee":"sample","extra-params":"","new":1}`))
		if a.status != want {
			t.Errorf("version %s: %d %s", version, a.status, a.body)
		}
	}
	a := send(t, s, http.MethodPost, "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"sgx","extra-params":""}`))
	e := a.problem(t)
	if a.status != http.StatusUnauthorized || e.Variant() != "AttestationError" || !strings.Contains(e.Detail, "supported: sample, tdx") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestDeniedGolden pins the whole answer to a denial, but for its trace id.
func TestDeniedGolden(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true, NoReferenceValues: true})
	s.SetReferenceValues(map[string]any{"launch_digest": []string{"x"}, "svn": []string{"1"}, "major_version": 1, "minimum_minor_version": 4})
	s.Put("default/key/1", []byte("the key"))
	g := newGuest(t, s)
	g.handshake()
	a := g.get("default/key/1")
	got := regexp.MustCompile(`[0-9a-f]{16}`).ReplaceAllString(string(a.body), "TRACE")
	const want = `{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny",` +
		`"detail":"Access denied by policy: policy resource-policy, rule every submod ear.status is affirming: expected affirming, ` +
		`got cpu0: warning (executables 33: launch_digest abcde is not in reference value launch_digest [x]); ` +
		`next: if you trust it, register the measurement: echo '{\"launch_digest\":[\"x\",\"abcde\"]}' | coffer kbs reference-value set -",` +
		`"reason":{"policy":"resource-policy","rule":"every submod ear.status is affirming","expected":"affirming",` +
		`"got":"cpu0: warning (executables 33: launch_digest abcde is not in reference value launch_digest [x])",` +
		`"next_step":"if you trust it, register the measurement: echo '{\"launch_digest\":[\"x\",\"abcde\"]}' | coffer kbs reference-value set -",` +
		`"trace_id":"TRACE"}}`
	if diff := cmp.Diff(want, got); diff != "" || a.status != http.StatusForbidden {
		t.Error(a.status, diff)
	}
	s.SetReferenceValues(map[string]any{"launch_digest": []string{"x", "abcde"}})
	g.handshake()
	g.open(g.get("default/key/1"), jose.ECDH_ES_A256KW)
}

func TestSampleRefused(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{})
	a := send(t, s, http.MethodPost, "/kbs/v0/auth", []byte(`{"version":"0.4.0","tee":"sample","extra-params":""}`))
	e := a.problem(t)
	e.Reason.TraceID = ""
	want := rcar.Error{
		Type:   rcar.ErrorTypePrefix + "AttestationError",
		Detail: "sample evidence is not allowed by this service: unauthorized",
		Reason: &rcar.Reason{
			Rule: "sample evidence allowed", Expected: "evidence from a real TEE: [tdx]", Got: "sample",
			NextStep: "run the guest in a TEE; for a test set-up only: set sample = true under [attestation] in coffer-kbs.toml and restart coffer-kbs",
		},
	}
	if diff := cmp.Diff(want, e); diff != "" || a.status != http.StatusUnauthorized {
		t.Error(a.status, diff)
	}
}

// TestTokenOfASampleService shows that switching sample evidence off also
// revokes the tokens that were had with it.
func TestTokenOfASampleService(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before := kbstest.New(t, kbstest.Options{Sample: true, Dir: dir})
	before.Put("default/key/1", []byte("the key"))
	g := newGuest(t, before)
	g.handshake()
	before.Close()
	g.s = kbstest.New(t, kbstest.Options{Dir: dir})
	a := g.get("default/key/1")
	if e := a.problem(t); a.status != http.StatusUnauthorized || !strings.Contains(e.Detail, "sample-evidence-allowed") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestRestartKeepsData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	before := kbstest.New(t, kbstest.Options{Sample: true, Dir: dir})
	before.Put("default/key/1", []byte("the key"))
	before.AllowAll()
	g := newGuest(t, before)
	g.handshake()
	before.Close()
	g.s = kbstest.New(t, kbstest.Options{Sample: true, Dir: dir, NoReferenceValues: true})
	if !bytes.Equal(before.JWKS, g.s.JWKS) {
		t.Error("the signing key changed")
	}
	if got := g.open(g.get("default/key/1"), jose.ECDH_ES_A256KW); string(got) != "the key" {
		t.Errorf("%q", got)
	}
	if a := send(t, g.s, http.MethodGet, "/kbs/v0/reference-value/svn", nil, admin(g.s)...); string(a.body) != `["1"]` {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := send(t, g.s, http.MethodGet, "/kbs/v0/resource-policy/resource-policy", nil, admin(g.s)...); !strings.Contains(string(a.body), "allow := true") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAwayAndBack(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("the key"))
	g := newGuest(t, s)
	g.handshake()
	s.GoAway()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Error("somebody answered")
	}
	s.ComeBack()
	g.open(g.get("default/key/1"), jose.ECDH_ES_A256KW)
}

func TestStorageAway(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	g := newGuest(t, s)
	g.handshake()
	late := newGuest(t, s)
	late.auth()
	s.CloseStorage()
	if a := g.get("default/key/1"); a.status != http.StatusServiceUnavailable {
		t.Errorf("get: %d %s", a.status, a.body)
	}
	if a := late.attest(late.attestation()); a.status != http.StatusServiceUnavailable {
		t.Errorf("attest: %d %s", a.status, a.body)
	}
	a := send(t, s, http.MethodPut, "/kbs/v0/resource/a/b/c", []byte("x"), admin(s)...)
	if e := a.problem(t); a.status != http.StatusServiceUnavailable || e.Variant() != "StorageError" || strings.Contains(e.Detail, "kbs.db") {
		t.Errorf("put: %d %s", a.status, a.body)
	}
}

// lines collects what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// audits returns the audit lines as "action outcome".
func (l *lines) audits(t *testing.T) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m["audit"] == true {
			if m["trace_id"] == "" || m["trace_id"] == nil {
				t.Errorf("no trace id: %s", line)
			}
			out = append(out, fmt.Sprint(m["action"], " ", m["outcome"]))
		}
	}
	return out
}

func TestAuditAndMetricsHoldNoSecret(t *testing.T) {
	t.Parallel()
	log := &lines{}
	s := kbstest.New(t, kbstest.Options{Sample: true, Logger: slog.New(slog.NewJSONHandler(log, nil))})
	send(t, s, http.MethodPut, "/kbs/v0/resource/team/key/top", []byte("hush-hush"), admin(s)...)
	g := newGuest(t, s)
	g.handshake()
	g.get("team/key/top")
	g.get("team/key/none")
	s.DenyAll()
	g.get("team/key/top")
	g.attest(g.attestation())
	send(t, s, http.MethodGet, "/kbs/v0/resource/team/key/top", nil)
	g.get("team/key")
	send(t, s, http.MethodDelete, "/kbs/v0/resource/team/key/top", nil, "Authorization", "Bearer nonsense-token")
	send(t, s, http.MethodPost, "/kbs/v0/resource-policy", []byte(`{"policy":"`+base64.RawURLEncoding.EncodeToString([]byte("package policy\nallow := true\n"))+`"}`), admin(s)...)
	want := []string{
		"resource.put ok", "attest ok", "resource.release released", "resource.release not_found", "resource.release denied",
		"attest refused", "resource.release unauthenticated", "resource.release refused",
		"resource.delete refused", "policy.in-force ok", "resource-policy.set ok",
	}
	if diff := cmp.Diff(want, log.audits(t)); diff != "" {
		t.Error(diff)
	}
	metrics := send(t, s, http.MethodGet, "/metrics", nil)
	for _, line := range []string{
		`coffer_kbs_attestations_total{result="ok",tee="sample"} 1`,
		`coffer_kbs_resources_total{result="released"} 1`,
		`coffer_kbs_resources_total{result="denied"} 1`,
		`coffer_kbs_resources_total{result="not_found"} 1`,
	} {
		if !strings.Contains(string(metrics.body), line) {
			t.Errorf("metrics lack %s:\n%s", line, metrics.body)
		}
	}
	for _, secret := range []string{"hush-hush", "nonsense-token", g.token, g.nonce, g.cookie.Value, s.AdminToken} {
		if strings.Contains(log.String(), secret) || strings.Contains(string(metrics.body), secret) {
			t.Errorf("%.20s… is in the log or the metrics", secret)
		}
	}
	if strings.Contains(string(metrics.body), "team") {
		t.Error("a resource's name is in the metrics")
	}
}
