// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

// tokenServer sells tokens; the shelf it guards accepts the last one only.
type tokenServer struct {
	server *httptest.Server

	mu     sync.Mutex
	accept func(r *http.Request) bool // whether the buyer gets one
	sold   []*http.Request
	token  string
	status int // answered instead, if not 0
}

func guardWithTokens(t *testing.T, s *shelf) *tokenServer {
	t.Helper()
	ts := &tokenServer{}
	ts.server = httptest.NewServer(http.HandlerFunc(ts.sell))
	t.Cleanup(ts.server.Close)
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if ts.token != "" && r.Header.Get("Authorization") == "Bearer "+ts.token {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="shelf"`, ts.server.URL))
		return status(http.StatusUnauthorized)(w, r)
	})
	return ts
}

func (ts *tokenServer) sell(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.sold = append(ts.sold, r)
	switch {
	case ts.status != 0:
		w.Header().Set("Retry-After", "9")
		w.WriteHeader(ts.status)
	case ts.accept != nil && !ts.accept(r):
		w.WriteHeader(http.StatusUnauthorized)
	default:
		ts.token = fmt.Sprintf("token-%d", len(ts.sold))
		fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, ts.token, ts.token)
	}
}

// expire makes the last token worthless.
func (ts *tokenServer) expire() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.token = ""
}

func (ts *tokenServer) sales() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.sold)
}

func parseLogin(t *testing.T, opts login.Options, format string, args ...any) *login.Config {
	t.Helper()
	c, err := login.Parse(fmt.Appendf(nil, format, args...), opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTokens buys tokens with each kind of credential.
func TestTokens(t *testing.T) {
	t.Parallel()
	basic := func(r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		return user == "u" && password == "p"
	}
	for name, tc := range map[string]struct {
		entry  string
		accept func(*http.Request) bool
		sales  int
	}{
		"anonymous": {`{}`, func(r *http.Request) bool { return r.Header.Get("Authorization") == "" }, 1},
		"password":  {`{"username":"u","password":"p"}`, basic, 1},
		"auth":      {`{"auth":"dTpw"}`, basic, 1},
		"identity token": {`{"auth":"MDAwMDA6","identitytoken":"idt"}`, func(r *http.Request) bool {
			return r.Method == http.MethodPost && r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") == "idt" &&
				r.PostForm.Get("service") == "shelf" && r.PostForm.Get("scope") == "repository:a/b:pull" && r.PostForm.Get("client_id") == "coffer"
		}, 1},
		"registry token": {`{"registrytoken":"ready"}`, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
			ts := guardWithTokens(t, s)
			ts.accept, ts.token = tc.accept, "ready"
			c := client(t, registry.Options{Credentials: parseLogin(t, login.Options{}, `{"auths":{%q:%s}}`, s.host(), tc.entry)}, s)
			_, content, err := pull(t, c, s.host()+"/a/b:v1")
			if err != nil || !bytes.Equal(content, p.content) || ts.sales() != tc.sales {
				t.Errorf("%d bytes, %d tokens, %v", len(content), ts.sales(), err)
			}
			if tc.sales > 0 && name != "identity token" && ts.sold[0].Form.Get("scope") != "repository:a/b:pull" {
				t.Errorf("scope %q", ts.sold[0].Form.Get("scope"))
			}
		})
	}
}

// TestTokenExpires has a token end in the middle of a pull: one renewal.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	ts := guardWithTokens(t, s)
	c := client(t, registry.Options{}, s)
	image, err := c.Resolve(t.Context(), s.host()+"/a/b:v1", "")
	if err != nil {
		t.Fatal(err)
	}
	ts.expire()
	rc, err := c.Fetch(t.Context(), image.Reference, p.layer, 1500)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(rc)
	_ = rc.Close()
	if err != nil || !bytes.Equal(rest, p.content[1500:]) || ts.sales() != 2 {
		t.Errorf("%d bytes, %d tokens, %v", len(rest), ts.sales(), err)
	}
}

// TestTokenServerFails has errors of the token server keep class and pause.
func TestTokenServerFails(t *testing.T) {
	t.Parallel()
	for code, tc := range map[int]struct {
		class     func(error) bool
		temporary bool
		pause     time.Duration
	}{
		401: {errdefs.IsUnauthorized, false, 9 * time.Second},
		403: {errdefs.IsPermissionDenied, false, 9 * time.Second},
		404: {errdefs.IsUnknown, false, 9 * time.Second},
		429: {errdefs.IsUnavailable, true, 9 * time.Second},
		503: {errdefs.IsUnavailable, true, 9 * time.Second},
	} {
		s := newShelf(t)
		ts := guardWithTokens(t, s)
		ts.status = code
		c := client(t, registry.Options{Credentials: parseLogin(t, login.Options{}, `{"auths":{%q:{"auth":"dTpzZWNyZXQ="}}}`, s.host())}, s)
		_, _, err := pull(t, c, s.host()+"/a/b:v1")
		var e *registry.Error
		if !errors.As(err, &e) || !tc.class(err) || e.Temporary != tc.temporary || e.RetryAfter != tc.pause || strings.Contains(err.Error(), "secret") {
			t.Errorf("%d: %#v %v", code, e, err)
		}
	}
}

// TestRenewedCredentials has the registry refuse what the document said at
// first, and the document change.
func TestRenewedCredentials(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	var mu sync.Mutex
	password := "one"
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if _, got, _ := r.BasicAuth(); got == password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
		return status(http.StatusUnauthorized)(w, r)
	})
	source := &changing{password: "one"}
	c := client(t, registry.Options{Credentials: source}, s)
	image, content, err := pull(t, c, s.host()+"/a/b:v1")
	if err != nil || !bytes.Equal(content, p.content) || source.refreshed != 0 {
		t.Fatalf("%d bytes, %d refreshes, %v", len(content), source.refreshed, err)
	}
	mu.Lock()
	password = "two"
	mu.Unlock()
	if _, err = fetch(t, c, image); !errdefs.IsUnauthorized(err) || source.refreshed != 1 {
		t.Errorf("nothing new: %d refreshes, %v", source.refreshed, err)
	}
	source.next = "two"
	if content, err = fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) || source.refreshed != 2 {
		t.Errorf("new: %d bytes, %d refreshes, %v", len(content), source.refreshed, err)
	}
	s.paths()
	if _, err = fetch(t, c, image); err != nil || len(s.paths()) != 1 {
		t.Errorf("the new one is not kept: %v", err)
	}
	source.fails = fmt.Errorf("kbs: denied: %w", errdefs.ErrPermissionDenied)
	c = client(t, registry.Options{Credentials: source}, s)
	if _, _, err = pull(t, c, s.host()+"/a/b:v1"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "kbs: denied") {
		t.Errorf("no source: %v", err)
	}
}

// changing is a source that another password comes into when it is refreshed.
type changing struct {
	password, next string
	refreshed      int
	fails          error
}

func (c *changing) Credential(context.Context, string, string) (login.Credential, error) {
	return login.Credential{Username: "u", Password: c.password}, c.fails
}

func (c *changing) Refresh(context.Context) error {
	c.refreshed++
	if c.next != "" {
		c.password = c.next
	}
	return c.fails
}

// TestNoLeak redirects blobs to another host, which must not see the login, and
// names a token server that must not get it.
func TestNoLeak(t *testing.T) {
	t.Parallel()
	s, other := newShelf(t), newShelf(t)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	other.put("moved", "", p.content, nil)
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
			return status(http.StatusUnauthorized)(w, r)
		}
		if strings.HasSuffix(r.URL.Path, p.layer.Digest.String()) {
			http.Redirect(w, r, other.server.URL+"/v2/moved", http.StatusTemporaryRedirect)
			return false
		}
		return true
	})
	// The second one, asked by the redirect, wants a login as well.
	seen := make(chan string, 10)
	other.setGuard(func(_ http.ResponseWriter, r *http.Request) bool {
		seen <- r.Header.Get("Authorization")
		return true
	})
	creds := parseLogin(t, login.Options{}, `{"auths":{%q:{"auth":"dTpw"},%q:{"auth":"dTpw"}}}`, s.host(), other.host())
	c := client(t, registry.Options{Credentials: creds}, s)
	image, content, err := pull(t, c, s.host()+"/a/b:v1")
	if err != nil || !bytes.Equal(content, p.content) {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	if got := <-seen; got != "" {
		t.Error("the other host saw the login")
	}
	other.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		seen <- r.Header.Get("Authorization")
		w.Header().Set("WWW-Authenticate", `Basic realm="other"`)
		return status(http.StatusUnauthorized)(w, r)
	})
	if _, err = fetch(t, c, image); !errdefs.IsUnauthorized(err) {
		t.Errorf("other host asks for a login: %v", err)
	}
	for len(seen) > 0 {
		if <-seen != "" {
			t.Error("the other host got the login when it asked")
		}
	}
}

// TestPlainTokenServer names a token server over plain HTTP while the registry
// is asked over HTTPS: it gets nothing.
func TestPlainTokenServer(t *testing.T) {
	t.Parallel()
	s := unstarted()
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	ts := guardWithTokens(t, s)
	c := client(t, registry.Options{
		CAs:         certificate(s),
		Credentials: parseLogin(t, login.Options{}, `{"auths":{%q:{"auth":"dTpw"}}}`, s.host()),
	})
	_, _, err := pull(t, c, s.host()+"/a/b:v1")
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "token server") || ts.sales() != 0 {
		t.Errorf("%d sales, %v", ts.sales(), err)
	}
}

// TestLoginPrograms runs docker-credential programs, as far as they may.
func TestLoginPrograms(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "u" && password == "from-program" {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
		return status(http.StatusUnauthorized)(w, r)
	})
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nread server\n[ \"$1 $server\" = 'get %s' ] || { echo credentials not found in native keychain; exit 1; }\n"+
		"echo '{\"ServerURL\":\"\",\"Username\":\"u\",\"Secret\":\"from-program\"}'\n", s.host())
	program := filepath.Join(dir, "docker-credential-coffertest")
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		document string
		programs bool
		class    func(error) bool
		text     string
	}{
		"credHelpers":              {`{"credHelpers":{%q:%q}}`, true, nil, ""},
		"credsStore":               {`{"auths":{%q:{}},"credsStore":%q}`, true, nil, ""},
		"credHelpers, not allowed": {`{"credHelpers":{%q:%q}}`, false, errdefs.IsFailedPrecondition, "not run"},
		"credsStore, not allowed":  {`{"auths":{%q:{}},"credsStore":%q}`, false, errdefs.IsUnauthorized, "set credentials"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			creds := parseLogin(t, login.Options{Programs: tc.programs, Directory: dir}, tc.document, s.host(), "coffertest")
			_, _, err := pull(t, client(t, registry.Options{Credentials: creds}, s), s.host()+"/a/b:v1")
			if tc.class == nil && err != nil || tc.class != nil && (!tc.class(err) || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("got %v", err)
			}
		})
	}
}
