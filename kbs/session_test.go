// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func jwt(payload string) string {
	return "eyJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	for token, want := range map[string]time.Duration{
		jwt(`{"iat":5,"exp":305}`):               270 * time.Second,
		jwt(`{"iat":5,"exp":15}`):                9 * time.Second,
		jwt(`{"exp":1000100}`):                   90 * time.Second,
		jwt(`{"exp":1000100.5,"iat":1000000.5}`): 90 * time.Second,
		jwt(`{"exp":999999}`):                    0,
		jwt(`{"iat":305,"exp":5}`):               0,
		jwt(`{"exp":1e300}`):                     24*time.Hour - 30*time.Second,
		jwt(`{"exp":-1e300,"iat":1e300}`):        0,
		jwt(`{"iat":5}`):                         time.Minute,
		jwt(`{"exp":"tomorrow"}`):                time.Minute,
		jwt(`nonsense`):                          time.Minute,
		"opaque":                                 time.Minute,
		"a.?.c":                                  time.Minute,
		"":                                       time.Minute,
		"a." + strings.Repeat("AAAA", 100000) + ".": time.Minute,
	} {
		if got := lifetime(token, now); got != want {
			t.Errorf("lifetime of %.60q is %v, want %v", token, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("Retry-After %q is %v, want %v", value, got, want)
		}
	}
}

func TestRetryPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tr := &transport{deadline: 15 * time.Second}
		ctx, cancel := tr.bounded(t.Context())
		defer cancel()
		began, tries := time.Now(), 0
		_, err := retry(ctx, func() (int, error) {
			tries++
			return 0, &Error{Status: 503, temporary: true, class: errdefs.ErrUnavailable}
		})
		var e *Error
		if took := time.Since(began); !errors.As(err, &e) || e.Status != 503 || tries < 5 || tries > 20 || took > 15*time.Second {
			t.Errorf("gave up with %v after %d tries and %v", err, tries, took)
		}

		ctx, cancel2 := tr.bounded(t.Context())
		defer cancel2()
		began, tries = time.Now(), 0
		_, err = retry(ctx, func() (int, error) {
			if tries++; tries > 1 {
				return 1, nil
			}
			return 0, &Error{Status: 429, temporary: true, retryAfter: 7 * time.Second, class: errdefs.ErrUnavailable}
		})
		if took := time.Since(began); err != nil || took != 7*time.Second {
			t.Errorf("came back with %v after %v", err, took)
		}
	})
}

func TestCookies(t *testing.T) {
	t.Parallel()
	c := cookies{}
	c.merge([]*http.Cookie{{Name: "kbs-session-id", Value: "a"}, {Name: "lb", Value: "1"}, {Name: "big", Value: strings.Repeat("x", 5000)}})
	c.merge([]*http.Cookie{{Name: "kbs-session-id", Value: "b"}, {Name: "lb", Value: "1", MaxAge: -1}})
	if len(c) != 1 || c["kbs-session-id"] != "b" {
		t.Errorf("cookies %v", c)
	}
	for i := range 100 {
		c.merge([]*http.Cookie{{Name: fmt.Sprint(i), Value: "v"}})
	}
	if len(c) != maxCookies {
		t.Errorf("%d cookies", len(c))
	}
}

func teeKey(t testing.TB) (*ecdsa.PrivateKey, *ecdh.PublicKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := key.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return key, pub
}

// TestDecryptMutations changes every member of a resource: none opens.
func TestDecryptMutations(t *testing.T) {
	t.Parallel()
	key, pub := teeKey(t)
	body := sealJWE(t, pub, []byte("layer key"))
	if got, err := decrypt(body, key); err != nil || string(got) != "layer key" {
		t.Fatalf("got %q, %v", got, err)
	}
	other, _ := teeKey(t)
	if got, err := decrypt(body, other); err == nil {
		t.Errorf("another key opens it: %q", got)
	}
	for _, name := range []string{"protected", "encrypted_key", "iv", "ciphertext", "tag"} {
		for what, edit := range map[string]func(string) string{
			"removed":   func(string) string { return "" },
			"flipped":   flip,
			"truncated": func(s string) string { return s[:len(s)-4] },
			"extended":  func(s string) string { return s + "AAAA" },
			"dotted":    func(s string) string { return s + "." },
		} {
			var m map[string]string
			if err := json.Unmarshal(body, &m); err != nil {
				t.Fatal(err)
			}
			m[name] = edit(m[name])
			changed, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := decrypt(changed, key); err == nil {
				t.Errorf("%s %s: opens as %q", name, what, got)
			}
		}
	}
}

func flip(s string) string {
	b := []byte(s)
	if at := len(b) / 2; b[at] == 'A' {
		b[at] = 'B'
	} else {
		b[at] = 'A'
	}
	return string(b)
}

func FuzzDecrypt(f *testing.F) {
	key, _ := teeKey(f)
	f.Add([]byte(`{"protected":"eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00ifQ","encrypted_key":"AA","iv":"AA","ciphertext":"AA","tag":"AA"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if got, err := decrypt(body, key); err == nil {
			t.Fatalf("opens as %q", got)
		}
	})
}

func FuzzLifetime(f *testing.F) {
	f.Add(`{"iat":1,"exp":301}`)
	f.Add(`{"exp":1e308,"iat":-1e308}`)
	f.Fuzz(func(t *testing.T, payload string) {
		if got := lifetime(jwt(payload), time.Unix(1_000_000, 0)); got < 0 || got > 24*time.Hour {
			t.Fatalf("lifetime %v", got)
		}
	})
}
