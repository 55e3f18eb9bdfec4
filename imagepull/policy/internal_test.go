// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// TestRedirects: a store leads nowhere but to HTTPS.
func TestRedirects(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("chosen")) }))
	defer plain.Close()
	var to string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/end" {
			_, _ = w.Write([]byte("signature"))
			return
		}
		http.Redirect(w, r, to, http.StatusFound)
	}))
	defer server.Close()
	v := NewVerifier(&Policy{}, nil, nil, Options{})
	v.http.Transport = server.Client().Transport
	e := &evaluation{Verifier: v}
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	to = server.URL + "/end"
	if b, err := e.readSignature(t.Context(), u); err != nil || string(b) != "signature" {
		t.Errorf("%q, %v", b, err)
	}
	for _, to = range []string{plain.URL, server.URL + "/again"} {
		if b, err := e.readSignature(t.Context(), u); err == nil || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "redirected") {
			t.Errorf("%s: %q, %v", to, b, err)
		}
	}
}

// FuzzPayload: what is read as a payload names a digest and a reference.
func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"critical":{"identity":{"docker-reference":"a.b/c:1"},"image":{"docker-manifest-digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},"type":"cosign container image signature"},"optional":null}`), true)
	f.Add([]byte(`{"critical":{},"optional":{"timestamp":1e400}}`), false)
	f.Fuzz(func(t *testing.T, b []byte, cosign bool) {
		kind := payloadSimple
		if cosign {
			kind = payloadCosign
		}
		p, err := parsePayload(b, kind)
		if err == nil && (p.digest.Validate() != nil || p.reference == "") {
			t.Errorf("%+v", p)
		}
	})
}

// FuzzSimple reads anything as an OpenPGP signature: none that the fuzzer
// makes has other content than the good one.
func FuzzSimple(f *testing.F) {
	read := func(name string) []byte {
		b, err := os.ReadFile("testdata/skopeo-1.9.3/" + name)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, name := range []string{"ed.sig", "rsa.sig", "two.sig", "sha1.sig", "clear.sig", "ed.gpg"} {
		f.Add(read(name))
	}
	keys, err := parseKeyring(read("ed.gpg"))
	if err != nil {
		f.Fatal(err)
	}
	want := digest.FromBytes(read("manifest.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		content, err := openSignature(keys, b, time.Now)
		if err != nil {
			return
		}
		if p, err := parsePayload(content, payloadSimple); err != nil || p.digest != want {
			t.Errorf("a good signature of %q", content)
		}
	})
}

// TestBusyStore: a store that is at fault for a while is asked again, and one
// that refuses is not.
func TestBusyStore(t *testing.T) {
	t.Parallel()
	for status, tries := range map[int]int32{
		http.StatusServiceUnavailable: storeTries, http.StatusTooManyRequests: storeTries,
		http.StatusForbidden: 1, http.StatusNotFound: 1,
	} {
		var asked, failing atomic.Int32
		failing.Store(100)
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) <= failing.Load() {
				w.WriteHeader(status)
				return
			}
			_, _ = w.Write([]byte("signature"))
		}))
		defer server.Close()
		v := NewVerifier(&Policy{}, nil, nil, Options{HTTP: server.Client()})
		v.pause = time.Millisecond
		e := &evaluation{Verifier: v}
		u, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.readSignature(t.Context(), u); err == nil || asked.Load() != tries {
			t.Errorf("%d: asked %d times, want %d; %v", status, asked.Load(), tries, err)
		}
		asked.Store(0)
		failing.Store(tries - 1)
		if b, err := e.readSignature(t.Context(), u); err != nil || string(b) != "signature" {
			t.Errorf("%d, then well: %q, %v", status, b, err)
		}
	}
}
