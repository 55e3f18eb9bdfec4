// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestLookup(t *testing.T) {
	t.Parallel()
	c, err := Parse([]byte(`{"auths":{
		"https://index.docker.io/v1/":{"username":"hub","password":"x"},
		"H.example":{"auth":"dTpwOncK"},
		"h.example/a":{"identitytoken":"t"},
		"h.example/a/b/c":{"registrytoken":"r"},
		"http://other.example/v2/":{"auth":"dTpw","username":"loses"},
		"stored.example":{}
	},"credsStore":"pass","HttpHeaders":{"x":"y"}}`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		registry, repository string
		want                 Credential
	}{
		{"docker.io", "library/busybox", Credential{Username: "hub", Password: "x"}},
		{"index.docker.io", "a", Credential{Username: "hub", Password: "x"}},
		{"h.example", "a/b", Credential{IdentityToken: "t"}},
		{"h.example", "a", Credential{IdentityToken: "t"}},
		{"h.example", "a/b/c/d", Credential{RegistryToken: "r"}},
		{"h.example", "ab", Credential{Username: "u", Password: "p:w"}},
		{"other.example", "a", Credential{Username: "u", Password: "p"}},
		{"stored.example", "a", Credential{}},
		{"h.example:5000", "a", Credential{}},
		{"example", "h.example/a", Credential{}},
	} {
		got, err := c.Credential(t.Context(), tc.registry, tc.repository)
		if err != nil || got != tc.want {
			t.Errorf("%s/%s: %#v, %v", tc.registry, tc.repository, got, err)
		}
	}
	if got, err := (*Config)(nil).Credential(t.Context(), "h", "a"); err != nil || got != (Credential{}) {
		t.Errorf("no document: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "[]", `{"auths":{"h":{"auth":"%%%"}}}`, `{"auths":{"h":{"auth":"c2VjcmV0"}}}`, `{"auths":{"h":{"auth":3}}}`,
		`{"credHelpers":{"h":"../secret"}}`, `{"credsStore":"a b"}`,
	} {
		if _, err := Parse([]byte(bad), Options{}); !errdefs.IsInvalidArgument(err) || strings.Contains(strings.TrimPrefix(err.Error(), `registry credentials: credHelpers "h": "../secret"`), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestSpellings has one registry twice: the spelling of references counts, and
// the answer is always the same.
func TestSpellings(t *testing.T) {
	t.Parallel()
	for range 20 {
		c, err := Parse([]byte(`{"auths":{
			"https://index.docker.io/v1/":{"username":"u","password":"v1"},
			"docker.io":{"username":"u","password":"canonical"},
			"registry-1.docker.io":{"username":"u","password":"served"},
			"https://h.example":{"username":"u","password":"scheme"},
			"h.example":{}, "h.example/v2/":{"username":"u","password":"path"}
		}}`), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for host, want := range map[string]string{"docker.io": "canonical", "h.example": "scheme"} {
			if got, err := c.Credential(t.Context(), host, "a"); err != nil || got.Password != want {
				t.Fatalf("%s: the one with %s, %v", host, got.Password, err)
			}
		}
	}
}

// TestHidden prints a credential in every way there is.
func TestHidden(t *testing.T) {
	t.Parallel()
	c := Credential{Username: "user", Password: "secret", IdentityToken: "secret", RegistryToken: "secret"}
	j, err := json.Marshal(map[string]any{"c": c})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s %q %x", c, c, c, c, c, c), fmt.Sprintf("%v", &c), string(j), c.LogValue().String()} {
		if strings.Contains(s, "secret") || strings.Contains(s, "user") {
			t.Error(s)
		}
	}
}

func TestPrograms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, script := range map[string]string{
		"basic": `read s; echo "{\"ServerURL\":\"$s\",\"Username\":\"$s\",\"Secret\":\"pw\"}"`,
		"token": `echo '{"Username":"<token>","Secret":"idt"}'`,
		"none":  `echo 'credentials not found in native keychain'; exit 1`,
		"fails": `echo secret; echo secret >&2; exit 2`,
		"loud":  `while :; do echo secretsecretsecretsecretsecretsecretsecretsecret; done`,
		"text":  `echo secret`,
	} {
		if err := os.WriteFile(filepath.Join(dir, programPrefix+name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		document string
		helpers  []string
		registry string
		want     Credential
		fails    bool
	}{
		{`{"credHelpers":{"h.example":"basic"},"auths":{"h.example":{"auth":"dTpw"}}}`, nil, "h.example", Credential{Username: "h.example", Password: "pw"}, false},
		{`{"credHelpers":{"docker.io":"basic"}}`, nil, "docker.io", Credential{Username: "https://index.docker.io/v1/", Password: "pw"}, false},
		{`{"credHelpers":{"h.example":"token"}}`, nil, "h.example", Credential{IdentityToken: "idt"}, false},
		{`{"credHelpers":{"h.example":"none"},"auths":{"h.example":{"auth":"dTpw"}}}`, nil, "h.example", Credential{}, false},
		{`{"credsStore":"basic","auths":{"h.example":{"auth":"dTpw"}}}`, nil, "h.example", Credential{Username: "u", Password: "p"}, false},
		{`{"credsStore":"none"}`, []string{"none", "token"}, "h.example", Credential{IdentityToken: "idt"}, false},
		{`{}`, []string{"none"}, "h.example", Credential{}, false},
		{`{"credsStore":"fails"}`, nil, "h.example", Credential{}, true},
		{`{"credsStore":"loud"}`, nil, "h.example", Credential{}, true},
		{`{"credsStore":"text"}`, nil, "h.example", Credential{}, true},
		{`{"credsStore":"absent"}`, nil, "h.example", Credential{}, true},
	} {
		c, err := Parse([]byte(tc.document), Options{Programs: true, Helpers: tc.helpers, Directory: dir})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Credential(t.Context(), tc.registry, "a")
		if got != tc.want || errdefs.IsUnavailable(err) != tc.fails || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %#v, %v", tc.document, got, err)
		}
	}
}

// TestLoader fetches at first use, after the lifetime, and after a refusal; not
// more.
func TestLoader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fetches, document := 0, `{"auths":{"h.example":{"auth":"dTox"}}}`
		fails := error(nil)
		l := NewLoader(func(context.Context) ([]byte, error) {
			fetches++
			return []byte(document), fails
		}, LoaderOptions{Lifetime: time.Hour})
		expect := func(what, password string, count int) {
			t.Helper()
			c, err := l.Credential(t.Context(), "h.example", "a")
			if err != nil || c.Password != password || fetches != count {
				t.Errorf("%s: %d fetches, %v", what, fetches, err)
			}
		}
		if fetches != 0 {
			t.Error("fetched before use")
		}
		expect("first use", "1", 1)
		document = `{"auths":{"h.example":{"auth":"dToy"}}}`
		expect("still young", "1", 1)
		if err := l.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect("refused a moment after", "1", 1)
		time.Sleep(time.Minute) //nolint:forbidigo // in a bubble, whose time costs nothing
		if err := l.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect("refused", "2", 2)
		document = `{"auths":{"h.example":{"auth":"dToz"}}}`
		time.Sleep(time.Hour) //nolint:forbidigo // as above
		expect("old", "3", 3)
		fails = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
		time.Sleep(time.Hour) //nolint:forbidigo // as above
		expect("cannot be renewed", "3", 4)
		expect("not asked at once again", "3", 4)
		time.Sleep(time.Minute) //nolint:forbidigo // as above
		expect("asked again", "3", 5)
		if err := l.Refresh(t.Context()); err != nil || fetches != 5 {
			t.Errorf("a refusal a moment after: %v", err)
		}
		l = NewLoader(func(context.Context) ([]byte, error) { return nil, fails }, LoaderOptions{})
		if _, err := l.Credential(t.Context(), "h", "a"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "kbs: away") {
			t.Errorf("never there: %v", err)
		}
		l = NewLoader(func(context.Context) ([]byte, error) { return []byte("no JSON"), nil }, LoaderOptions{})
		if _, err := l.Credential(t.Context(), "h", "a"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("not a document: %v", err)
		}
	})
}

// TestLoaderWaits has a caller leave while another fetches.
func TestLoaderWaits(t *testing.T) {
	t.Parallel()
	begun, end := make(chan struct{}), make(chan struct{})
	l := NewLoader(func(context.Context) ([]byte, error) {
		close(begun)
		<-end
		return []byte(`{}`), nil
	}, LoaderOptions{})
	done := make(chan error)
	go func() {
		_, err := l.Credential(t.Context(), "h", "a")
		done <- err
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Credential(ctx, "h", "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("the one that left: %v", err)
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"auths":{"h/a":{"auth":"dTpw"}},"credHelpers":{"x":"y"},"credsStore":"z"}`), "h", "a/b")
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}}}`), "docker.io", "library/a")
	f.Fuzz(func(t *testing.T, b []byte, registry, repository string) {
		c, err := Parse(b, Options{})
		if err != nil {
			return
		}
		for key := range c.logins {
			if canonicalKey(key) != key && strings.Count(key, "://") == 0 && !strings.Contains(key, "/v") {
				t.Errorf("key %q is also %q", key, canonicalKey(key))
			}
		}
		if _, err := c.Credential(t.Context(), registry, repository); err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%v", err)
		}
	})
}
