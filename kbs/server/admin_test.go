// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// TestAdminClaims signs claims with the right key that must be refused all the
// same.
func TestAdminClaims(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 0)
	s := &Server{
		parts: Parts{AdminKeys: []ed25519.PublicKey{other, public}},
		opts:  Options{Now: func() time.Time { return now }}, log: slog.New(slog.DiscardHandler),
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for name, c := range map[string]struct {
		claims any
		status int
		text   string
	}{
		"good":         {adminClaims{Role: "admin", IssuedAt: at(0), Expires: at(time.Hour)}, 200, ""},
		"clocks":       {adminClaims{Role: "admin", IssuedAt: at(time.Minute), Expires: at(time.Hour)}, 200, ""},
		"longest":      {adminClaims{Role: "admin", IssuedAt: at(0), Expires: at(MaxAdminToken)}, 200, ""},
		"too long":     {adminClaims{Role: "admin", IssuedAt: at(0), Expires: at(MaxAdminToken + time.Second)}, 401, "lifetime is more than"},
		"expired":      {adminClaims{Role: "admin", IssuedAt: at(-time.Hour), Expires: at(0)}, 401, "expired at"},
		"of tomorrow":  {adminClaims{Role: "admin", IssuedAt: at(61 * time.Second), Expires: at(time.Hour)}, 401, "not valid before"},
		"nbf":          {adminClaims{Role: "admin", IssuedAt: at(0), NotBefore: at(2 * time.Minute), Expires: at(time.Hour)}, 401, "not valid before"},
		"without iat":  {adminClaims{Role: "admin", Expires: at(time.Hour)}, 401, "iat or exp is missing"},
		"without exp":  {adminClaims{Role: "admin", IssuedAt: at(0)}, 401, "iat or exp is missing"},
		"without role": {adminClaims{IssuedAt: at(0), Expires: at(time.Hour)}, 403, "role is not admin"},
		"other role":   {adminClaims{Role: "Admin", IssuedAt: at(0), Expires: at(time.Hour)}, 403, "role is not admin"},
		"roles":        {map[string]any{"role": []string{"admin"}, "iat": at(0), "exp": at(time.Hour)}, 401, "claims are not as expected"},
		"no object":    {[]string{"admin"}, 401, "claims are not as expected"},
	} {
		payload, err := json.Marshal(c.claims)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		served := false
		h := s.admin("test", func(http.ResponseWriter, *request) error { served = true; return nil })
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		if err := h(w, &request{Request: r}); err != nil {
			s.fail(w, &request{Request: r}, err)
		}
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.text) || served != (c.status == http.StatusOK) {
			t.Errorf("%s: %d, served %v: %s", name, w.Code, served, w.Body)
		}
	}
}

// TestPanicIsAnAnswer lets a handler panic: the caller gets an answer that
// does not say why, and the log does.
func TestPanicIsAnAnswer(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s := &Server{
		opts: Options{MaxBody: 1}, log: slog.New(slog.NewJSONHandler(&log, nil)),
		routes: map[string]map[string]handler{"x": {http.MethodGet: func(http.ResponseWriter, *request) error {
			panic("the cause") //nolint:forbidigo // what the test is about
		}}},
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/kbs/v0/x/secret-name", nil))
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "the cause") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "the cause") || !strings.Contains(log.String(), "TestPanicIsAnAnswer") || strings.Contains(log.String(), "secret-name") {
		t.Errorf("log %s", log.String())
	}
}

// TestInnardsStayInside shows that an error of the service's own goes to the
// log and not to the caller.
func TestInnardsStayInside(t *testing.T) {
	t.Parallel()
	p := fromClass("StorageError", &fs.PathError{Op: "open", Path: "/srv/kbs.db", Err: syscall.EIO})
	if p.status != http.StatusServiceUnavailable || strings.Contains(p.detail, "/srv") || !strings.Contains(p.Error(), "/srv") {
		t.Errorf("%d %q %q", p.status, p.detail, p.Error())
	}
}
