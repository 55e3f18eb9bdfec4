// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"crypto/ecdh"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kid = "kbs:///default/key/1"

func TestGetResource(t *testing.T) {
	t.Parallel()
	for _, extra := range []string{
		`""`, `{}`, `{"selected-hash-algorithm":"SHA384"}`,
		`{"selected-hash-algorithm":"sha512"}`, `{"selected-hash-algorithm":"sha256"}`,
	} {
		t.Run(extra, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.extra = extra
			c := newTestClient(t, f.URL+"/", source{}, ClientOptions{})
			for range 3 {
				got, err := c.GetResource(t.Context(), kid)
				if err != nil || string(got) != string(f.secret) {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			if f.counts("auth") != 1 || f.counts("attest") != 1 || f.counts("get") != 3 {
				t.Errorf("requests: %v", f.count)
			}
			want := map[string]any{
				"version": "0.4.0", "tee": "sample",
				"extra-params": map[string]any{"supported-hash-algorithms": []any{"sha256", "sha384", "sha512"}},
			}
			if d := cmp.Diff(want, f.lastAuth); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestGetResourceRequest(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var got []string
	f.onGet = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		cookie, err := r.Cookie("kbs-session-id")
		got = append(got, r.RequestURI, r.Header.Get("Authorization")[:7], fmt.Sprint(err, cookie != nil), r.Header.Get("User-Agent"))
		return false
	}
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	if _, err := c.GetResource(t.Context(), "kbs://elsewhere:1/a%20b/c?x=1"); err != nil {
		t.Fatal(err)
	}
	want := []string{"/kbs/v0/resource/a%20b/c?x=1", "Bearer ", "<nil> true", "coffer-kbs-client/0.4.0"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSingleFlight(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	const callers = 50
	var started sync.WaitGroup
	started.Add(callers)
	f.onAuth = func(http.ResponseWriter, *http.Request, int) bool {
		started.Wait()
		return false
	}
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	var done sync.WaitGroup
	for range callers {
		done.Go(func() {
			started.Done()
			if got, err := c.GetResource(t.Context(), kid); err != nil || string(got) != string(f.secret) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	done.Wait()
	if f.counts("auth") != 1 || f.counts("attest") != 1 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestFirstWaiterLeaves(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	asked, release := make(chan struct{}), make(chan struct{})
	f.onAuth = func(http.ResponseWriter, *http.Request, int) bool {
		close(asked)
		<-release
		return false
	}
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	var first, second sync.WaitGroup
	first.Go(func() {
		if _, err := c.GetResource(ctx, kid); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled call: %v", err)
		}
	})
	<-asked
	second.Go(func() {
		if got, err := c.GetResource(t.Context(), kid); err != nil || string(got) != string(f.secret) {
			t.Errorf("got %q, %v", got, err)
		}
	})
	cancel()
	first.Wait()
	close(release)
	second.Wait()
	if f.counts("auth") != 1 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestCallersDeadline(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	release := make(chan struct{})
	f.onAuth = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		drain(r)
		<-release
		return false
	}
	defer close(release)
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.GetResource(ctx, kid); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestTokenExpiry(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.lifetime = 0
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	for range 2 {
		if _, err := c.GetResource(t.Context(), kid); err != nil {
			t.Fatal(err)
		}
	}
	if f.counts("attest") != 2 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestTokenRefusedOnce(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.onGet = func(w http.ResponseWriter, _ *http.Request, n int) bool {
		if n == 2 { // as after a restart of the service
			fail(w, 401, "TokenNotFound", "Attestation Token not found")
		}
		return n == 2
	}
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	for range 3 {
		if got, err := c.GetResource(t.Context(), kid); err != nil || string(got) != string(f.secret) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if f.counts("attest") != 2 || f.counts("get") != 4 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestTokenRefusedAlways(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.onGet = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		fail(w, 401, "TokenVerifierError", "signer is not trusted")
		return true
	}
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	_, err := c.GetResource(t.Context(), kid)
	if !errors.Is(err, errdefs.ErrUnauthenticated) || !strings.Contains(err.Error(), "again after attesting anew") {
		t.Errorf("error %v", err)
	}
	if f.counts("attest") != 2 || f.counts("get") != 2 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestAgentToken(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := newTestClient(t, f.URL, source{}, ClientOptions{})
	b, err := c.AgentToken(t.Context(), "kbs")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b, &got); err != nil || len(got) != 2 {
		t.Fatalf("%d members, %v", len(got), err)
	}
	block, rest := pem.Decode([]byte(got["tee_keypair"]))
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		t.Fatal("tee_keypair is not one PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := key.(interface {
		ECDH() (*ecdh.PrivateKey, error)
	}).ECDH()
	if err != nil || !priv.PublicKey().Equal(f.teeKeys[got["token"]]) {
		t.Errorf("token and key do not belong together: %v", err)
	}
	if _, err := c.GetResource(t.Context(), kid); err != nil {
		t.Error(err)
	}
	if _, err := c.AgentToken(t.Context(), "coco_as"); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("coco_as: %v", err)
	}
	if f.counts("attest") != 1 {
		t.Errorf("requests: %v", f.count)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	waiting := make(chan struct{})
	c, err := NewClient(f.URL, source{wait: func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}}, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var call sync.WaitGroup
	call.Go(func() {
		if _, err := c.GetResource(t.Context(), kid); !errors.Is(err, context.Canceled) {
			t.Errorf("call under way: %v", err)
		}
	})
	<-waiting
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	call.Wait()
	if _, err := c.GetResource(t.Context(), kid); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("call after Close: %v", err)
	}
}

func TestNewClientURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "host", "host:8080", "ftp://host", "https://", "https://user:SECRET@host", "https://host?a", "https://host/#a", "http://[::1", "://",
	} {
		c, err := NewClient(url, source{}, ClientOptions{})
		if err == nil || !errors.Is(err, errdefs.ErrInvalidArgument) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("url %q: %v, %v", url, c, err)
		}
	}
	if _, err := NewClient("https://host", source{}, ClientOptions{CA: []byte("no PEM")}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("bad CA: %v", err)
	}
}
