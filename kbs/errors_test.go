// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// answers makes a hook that answers with status and body from request
// number from on.
func answers(status int, contentType, body string, from int) hook {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n < from {
			return false
		}
		drain(r)
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

func kbsError(variant, rest string) string {
	return `{"type":"` + rcar.ErrorTypePrefix + variant + `","detail":` + rest + `}`
}

// TestRefusals covers answers that no other try would change: each is asked
// for once.
func TestRefusals(t *testing.T) {
	t.Parallel()
	reason := `"no","reason":{"rule":"allow","policy":"resource-policy","expected":"affirming","got":"none","next_step":"register the launch digest"}`
	for _, c := range []struct {
		name              string
		auth, attest, get hook
		class             error
		want              []string
	}{
		{name: "policy as Trustee says it", get: answers(401, "", kbsError("PolicyDeny", `"Access denied by policy"`), 1),
			class: errdefs.ErrPermissionDenied, want: []string{"get " + kid, "401 PolicyDeny", "Access denied by policy", "next: have the resource's owner allow"}},
		{name: "policy with a reason", get: answers(403, "", kbsError("PolicyDeny", reason), 1),
			class: errdefs.ErrPermissionDenied, want: []string{"; policy resource-policy, rule allow: expected affirming, got none; next: register the launch digest"}},
		{name: "reason without a next step", get: answers(403, "", kbsError("PolicyDeny", `"no","reason":{"rule":"allow"}`), 1),
			class: errdefs.ErrPermissionDenied, want: []string{"; rule allow; next: have the resource's owner"}},
		{name: "reason with a trace only", get: answers(403, "", kbsError("PolicyDeny", `"no","reason":{"trace_id":"t1"}`), 1),
			class: errdefs.ErrPermissionDenied, want: []string{"PolicyDeny: no (trace t1); next: have"}},
		{name: "reason that the detail has too", get: answers(403, "", kbsError("PolicyDeny", `"no: rule allow; next: do it","reason":{"rule":"allow","next_step":"do it","trace_id":"t1"}`), 1),
			class: errdefs.ErrPermissionDenied, want: []string{"PolicyDeny: no: rule allow; next: do it (trace t1)"}},
		{name: "missing as Trustee says it", get: answers(401, "", kbsError("PluginInternalError", `"Plugin internal error"`), 1),
			class: errdefs.ErrNotFound, want: []string{"next: check that the resource is registered"}},
		{name: "missing", get: answers(404, "", kbsError("ResourceNotFound", `"no such resource"`), 1),
			class: errdefs.ErrNotFound, want: []string{"404 ResourceNotFound: no such resource; next: have the resource's owner register it"}},
		{name: "no plugin", get: answers(404, "", kbsError("PluginNotFound", `"x"`), 1), class: errdefs.ErrNotFound},
		{name: "bad path", get: answers(404, "", kbsError("InvalidRequestPath", `"x"`), 1), class: errdefs.ErrInvalidArgument},
		{name: "bad request", get: answers(400, "", kbsError("SerdeError", `"x"`), 1), class: errdefs.ErrInvalidArgument},
		{name: "storage broken as Trustee says it", get: answers(401, "", kbsError("PolicyEngineError", `"x"`), 1), class: errdefs.ErrUnavailable},
		{name: "evidence refused", attest: answers(401, "", kbsError("AttestationError", `"sample is not switched on"`), 1),
			class: errdefs.ErrUnauthenticated, want: []string{": attest: answer 401 AttestationError: sample is not switched on; next: look in the KBS's log"}},
		{name: "version refused", auth: answers(401, "", kbsError("AttestationError", `"Version Mismatch"`), 1), class: errdefs.ErrUnauthenticated},
		{name: "plain 403", get: answers(403, "text/html", "<html>SECRET</html>", 1),
			class: errdefs.ErrPermissionDenied, want: []string{"answer 403: Forbidden, without the reason"}},
		{name: "redirect", auth: answers(302, "", "", 1),
			class: errdefs.ErrUnavailable, want: []string{"redirects are not followed; next: configure the URL"}},
		{name: "created", get: answers(201, "", "", 1), class: errdefs.ErrUnavailable},
		{name: "not implemented", get: answers(501, "", "", 1), class: errdefs.ErrUnavailable},
		{name: "captive portal", auth: answers(200, "text/html", "<html>SECRET</html>", 1),
			class: errdefs.ErrUnavailable, want: []string{"rcar challenge: not JSON", "next: check that the URL is a KBS's"}},
		{name: "empty challenge", auth: answers(200, "", "{}", 1), class: errdefs.ErrUnavailable},
		{name: "unknown hash", auth: answers(200, "", `{"nonce":"n","extra-params":{"selected-hash-algorithm":"sm3"}}`, 1),
			class: errdefs.ErrUnavailable, want: []string{"sm3"}},
		{name: "no token", attest: answers(200, "", `{"token":""}`, 1), class: errdefs.ErrUnavailable},
		{name: "huge challenge", auth: answers(200, "", strings.Repeat("SECRET", maxChallenge), 1),
			class: errdefs.ErrUnavailable, want: []string{"larger than"}},
		{name: "huge resource", get: answers(200, "", strings.Repeat("x", maxResource+1), 1),
			class: errdefs.ErrUnavailable, want: []string{"larger than"}},
		{name: "resource in the clear", get: answers(200, "", "SECRET", 1),
			class: errdefs.ErrDataLoss, want: []string{"resource is not a JWE; next: "}},
		{name: "resource with a weak algorithm", get: answers(200, "", `{"protected":"eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMTI4Q0JDLUhTMjU2In0","encrypted_key":"","iv":"","ciphertext":"","tag":""}`, 1),
			class: errdefs.ErrDataLoss, want: []string{"ECDH-ES+A256KW and A256GCM"}},
		{name: "huge error", get: answers(400, "", kbsError("SerdeError", `"`+strings.Repeat("x", 1<<20)+`"`), 1), class: errdefs.ErrInvalidArgument},
		{name: "long detail", get: answers(400, "", kbsError("SerdeError", `"`+strings.Repeat("é\\n", 5000)+`"`), 1), class: errdefs.ErrInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.onAuth, f.onAttest, f.onGet = c.auth, c.attest, c.get
			client := newTestClient(t, f.URL, source{}, ClientOptions{})
			_, err := client.GetResource(t.Context(), kid)
			checkError(t, err, f.URL, c.class, c.want)
			if f.counts("auth") != 1 || f.counts("get") > 1 {
				t.Errorf("requests: %v", f.count)
			}
		})
	}
}

// checkError checks the form all errors share, and that they survive ttrpc.
func checkError(t *testing.T, err error, url string, class error, want []string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, class) {
		t.Fatalf("error %v, want class %v", err, class)
	}
	text := err.Error()
	if !strings.HasPrefix(text, "kbs "+url+": ") || strings.ContainsAny(text, "\r\n") || len(text) > 2000 {
		t.Errorf("error has not the common form: %.300q", text)
	}
	if !strings.Contains(text, "next: ") {
		t.Errorf("error says no next step: %v", err)
	}
	if strings.Contains(text, "SECRET") {
		t.Errorf("error quotes what it got: %v", err)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("error %q, want %q in it", text, w)
		}
	}
	back := errgrpc.ToNative(errgrpc.ToGRPC(err))
	if !errors.Is(back, class) || !strings.HasPrefix(back.Error(), text) {
		t.Errorf("over ttrpc: %v", back)
	}
}

// TestRecovers covers failures that pass.
func TestRecovers(t *testing.T) {
	t.Parallel()
	cut := func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n > 1 {
			return false
		}
		drain(r)
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "{")
		panic(http.ErrAbortHandler) //nolint:forbidigo // how a handler cuts the connection
	}
	once := func(status int, body string) hook {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			return n == 1 && answers(status, "text/html", body, 1)(w, r, n)
		}
	}
	for name, set := range map[string]func(*fakeKBS){
		"auth cut":          func(f *fakeKBS) { f.onAuth = cut },
		"attest cut":        func(f *fakeKBS) { f.onAttest = cut },
		"resource cut":      func(f *fakeKBS) { f.onGet = cut },
		"auth HTML 502":     func(f *fakeKBS) { f.onAuth = once(502, "<html>bad gateway</html>") },
		"attest 500":        func(f *fakeKBS) { f.onAttest = once(500, "") },
		"resource 503":      func(f *fakeKBS) { f.onGet = once(503, kbsError("X", `"busy"`)) },
		"resource 429":      func(f *fakeKBS) { f.onGet = once(429, "") },
		"all of them twice": func(f *fakeKBS) { f.onAuth, f.onAttest, f.onGet = once(502, ""), cut, once(503, "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			set(f)
			c := newTestClient(t, f.URL, source{}, ClientOptions{})
			if got, err := c.GetResource(t.Context(), kid); err != nil || string(got) != string(f.secret) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := newTestClient(t, nobody, source{}, ClientOptions{Deadline: 500 * time.Millisecond})
	_, err = c.GetResource(t.Context(), kid)
	checkError(t, err, nobody, errdefs.ErrUnavailable, []string{"connection refused; next: check that the KBS runs"})

	f := newFake(t)
	f.onAuth = answers(503, "", kbsError("X", `"database is away"`), 1)
	c = newTestClient(t, f.URL, source{}, ClientOptions{Deadline: 700 * time.Millisecond})
	_, err = c.GetResource(t.Context(), kid)
	checkError(t, err, f.URL, errdefs.ErrUnavailable, []string{"503 X: database is away"})
	if f.counts("auth") < 2 {
		t.Errorf("requests: %v", f.count)
	}

	f = newFake(t)
	f.onAuth = func(w http.ResponseWriter, r *http.Request, n int) bool {
		w.Header().Set("Retry-After", "3600")
		return answers(429, "", "", 1)(w, r, n)
	}
	c = newTestClient(t, f.URL, source{}, ClientOptions{})
	_, err = c.GetResource(t.Context(), kid)
	checkError(t, err, f.URL, errdefs.ErrUnavailable, []string{"next: try again in 1h0m0s"})
	if f.counts("auth") != 1 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestSlow(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	slow := func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		drain(r)
		<-release
		return false
	}
	for want, set := range map[string]func(*fakeKBS){
		"attest: no answer within 200ms":                  func(f *fakeKBS) { f.onAuth = slow },
		"attest: no answer within 200ms; ":                func(f *fakeKBS) { f.onAttest = slow },
		"get " + kid + ": no answer within 200ms; next: ": func(f *fakeKBS) { f.onGet = slow },
	} {
		f := newFake(t)
		set(f)
		c := newTestClient(t, f.URL, source{}, ClientOptions{Deadline: 200 * time.Millisecond})
		_, err := c.GetResource(t.Context(), kid)
		checkError(t, err, f.URL, errdefs.ErrUnavailable, []string{want})
	}
}

func TestEvidenceErrors(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := newTestClient(t, f.URL, source{err: fmt.Errorf("open quote: %w", errdefs.ErrNotImplemented)}, ClientOptions{})
	_, err := c.GetResource(t.Context(), kid)
	if !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "get evidence of tee sample: open quote") {
		t.Errorf("error %v", err)
	}
	c = newTestClient(t, f.URL, source{wait: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}, ClientOptions{Deadline: 100 * time.Millisecond})
	_, err = c.GetResource(t.Context(), kid)
	checkError(t, err, f.URL, errdefs.ErrUnavailable, []string{"no answer within 100ms"})
	if f.counts("attest") != 0 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestBadURI(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	for _, uri := range []string{"", "default/key/1", "https://host/a/b/c", "kbs:///../auth"} {
		if _, err := c.GetResource(t.Context(), uri); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("URI %q: %v", uri, err)
		}
	}
	if f.counts("auth") != 0 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := httptest.NewUnstartedServer(f.Config.Handler)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	c := newTestClient(t, s.URL, source{}, ClientOptions{})
	_, err := c.GetResource(t.Context(), kid)
	checkError(t, err, s.URL, errdefs.ErrUnavailable, []string{"certificate", "next: configure the CA"})

	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	c = newTestClient(t, s.URL, source{}, ClientOptions{CA: ca})
	if got, err := c.GetResource(t.Context(), kid); err != nil || string(got) != string(f.secret) {
		t.Errorf("got %q, %v", got, err)
	}

	wrong := "https" + strings.TrimPrefix(f.URL, "http")
	c = newTestClient(t, wrong, source{}, ClientOptions{})
	_, err = c.GetResource(t.Context(), kid)
	checkError(t, err, wrong, errdefs.ErrUnavailable, []string{"next: configure the KBS's URL with http:"})
}

func TestPlainHTTPWarning(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"http://kbs.example:8080": true, "https://kbs.example": false, "http://127.0.0.1:1": false, "http://[::1]:1": false, "http://localhost": false,
	} {
		var log strings.Builder
		newTestClient(t, url, source{}, ClientOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if got := strings.Contains(log.String(), "without TLS"); got != want {
			t.Errorf("%s: log %q", url, log.String())
		}
	}
}

// TestNoSecretsInErrors has the service quote the token in its refusal.
func TestNoSecretsInErrors(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var token string
	f.onGet = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		fail(w, 403, "PolicyDeny", "token "+token+" is not welcome")
		return true
	}
	var log strings.Builder
	c := newTestClient(t, f.URL, source{}, ClientOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	_, err := c.GetResource(t.Context(), kid)
	checkError(t, err, f.URL, errdefs.ErrPermissionDenied, []string{"token [redacted] is not welcome"})
	all := fmt.Sprintf("%v %+v %#v %s %s", c, c, c, c, log.String())
	if token == "" || strings.Contains(all+err.Error(), token) {
		t.Errorf("the token is shown in %q or %q", all, err)
	}
	if !strings.Contains(log.String(), "attested") {
		t.Errorf("log %q", log.String())
	}
}
