// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

// TestProxyOverTLS has a proxy that is spoken to over TLS verified also for a
// registry whose certificate is not, and no registry's client certificate shown
// to it.
func TestProxyOverTLS(t *testing.T) {
	t.Parallel()
	s := unstarted()
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	handler := &connectProxy{to: s.host()}
	var mu sync.Mutex
	connections, shown := 0, 0
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		connections++
		shown += len(r.TLS.PeerCertificates)
		mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	proxy.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	proxy.Config.ErrorLog = s.server.Config.ErrorLog
	proxy.StartTLS()
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close(); handler.wg.Wait() })

	cert, key, _ := clientPair(t)
	opts := registry.Options{
		Proxy:  registry.Proxy{HTTPS: "https://u:p@" + proxy.Listener.Addr().String()},
		TLS:    map[string]registry.HostTLS{"wrong.example": {Certificates: []registry.ClientCertificate{{Certificate: cert, Key: key}}}},
		Config: parseConf(t, "[[registry]]\nlocation = \"wrong.example\"\ninsecure = true\n"),
	}
	for _, host := range []string{"wrong.example", "example.com"} {
		if _, _, err := pull(t, client(t, opts), host+"/a/b:v1"); !errdefs.IsUnavailable(err) || connections != 0 {
			t.Errorf("%s: %d requests to a proxy of an unknown authority, %v", host, connections, err)
		}
	}
	opts.CAs = certificate(s) // the proxy's too
	for _, host := range []string{"wrong.example", "example.com"} {
		c := client(t, opts)
		if _, content, err := pull(t, c, host+"/a/b:v1"); err != nil || !bytes.Equal(content, p.content) {
			t.Errorf("%s: %d bytes, %v", host, len(content), err)
		}
		c.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if connections == 0 || shown != 0 {
		t.Errorf("%d requests to the proxy, %d certificates shown", connections, shown)
	}
}

// rotated is a source whose first credential is not accepted any more; the
// second comes when it is refreshed.
type rotated struct {
	mu  sync.Mutex
	new bool
}

func (r *rotated) Credential(context.Context, string, string) (login.Credential, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.new {
		return login.Credential{Username: "u", Password: "new"}, nil
	}
	return login.Credential{Username: "u", Password: "old"}, nil
}

func (r *rotated) Refresh(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.new = true
	return nil
}

// TestRenewedTogether has several requests refused at once: each is sent again
// with the new credential, whichever of them fetched it.
func TestRenewedTogether(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	const together = 4
	var refused atomic.Int32
	later := make(chan struct{})
	s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		switch _, password, _ := r.BasicAuth(); password {
		case "new":
			return true
		case "old":
			// One refusal comes early; the others after it has been renewed.
			if refused.Add(1) > 1 {
				<-later
			}
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
		return status(http.StatusUnauthorized)(w, r)
	})
	c := client(t, registry.Options{Credentials: &rotated{}}, s)
	ref := s.host() + "/a/b@" + p.manifest.Digest.String()
	results := make(chan error, together)
	for range together {
		go func() {
			rc, err := c.Fetch(t.Context(), ref, p.layer, 0)
			if err == nil {
				_ = rc.Close()
			}
			results <- err
		}()
	}
	if err := <-results; err != nil {
		t.Errorf("the first: %v", err)
	}
	close(later)
	for range together - 1 {
		if err := <-results; err != nil {
			t.Errorf("another: %v", err)
		}
	}
}

// TestErrorsOfTheWay has errors of the way to a token be one short line,
// without any address, and say whether there is use in trying again.
func TestErrorsOfTheWay(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	for name, tc := range map[string]struct {
		entry     string
		answer    func(w http.ResponseWriter, r *http.Request) // of the token server, or of everything if realm is basic
		basic     bool
		class     func(error) bool
		temporary bool
		text      string
	}{
		"no JSON": {`{"auth":"dTpw"}`, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("sig") == "" {
				http.Redirect(w, r, r.URL.String()+"&sig=hidden", http.StatusFound)
				return
			}
			fmt.Fprint(w, "<html>")
		}, false, errdefs.IsUnavailable, true, ": failed to decode response: "},
		"no token": {`{"auth":"dTpw"}`, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, false, errdefs.IsUnavailable, true, ": empty token returned"},
		"no address": {`{"auth":"dTpw"}`, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://h.example:x/"+strings.Repeat("hidden", 1000))
			w.WriteHeader(http.StatusFound)
		}, false, errdefs.IsUnknown, false, "redirects to what is no address"},
		"elsewhere": {`{"identitytoken":"secret"}`, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL+"/?sig=hidden", http.StatusTemporaryRedirect)
		}, false, errdefs.IsPermissionDenied, false, "token server "},
		"no password":            {`{"auth":"dTo="}`, nil, true, errdefs.IsUnauthorized, false, "wants user and password"},
		"token where a password": {`{"identitytoken":"secret"}`, nil, true, errdefs.IsUnauthorized, false, "wants user and password"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				if tc.answer != nil && r.URL.Path == "/v2/token" {
					tc.answer(w, r)
					return false
				}
				challenge := "Bearer realm=\"" + s.server.URL + "/v2/token\",service=\"s\""
				if tc.basic {
					challenge = `Basic realm="s"`
				}
				w.Header().Set("WWW-Authenticate", challenge)
				return status(http.StatusUnauthorized)(w, r)
			})
			c := client(t, registry.Options{Credentials: parseLogin(t, login.Options{}, `{"auths":{%q:%s}}`, s.host(), tc.entry)}, s)
			_, err := c.Resolve(t.Context(), s.host()+"/a/b:v1", "")
			var e *registry.Error
			if !errors.As(err, &e) || !tc.class(err) || e.Temporary != tc.temporary {
				t.Fatalf("got %#v, %v", e, err)
			}
			text := err.Error()
			if !strings.Contains(text, tc.text) || strings.Contains(text, "hidden") || strings.Contains(text, "secret") || strings.Contains(text, "://") || len(text) > 500 {
				t.Errorf("got %.2000s", text)
			}
		})
	}
}

// TestDrips has bytes come one by one, so that there is no stall: what is small
// ends, a blob goes on.
func TestDrips(t *testing.T) {
	t.Parallel()
	const stall = 250 * time.Millisecond
	drip := func(code int, limit time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			left := code
			tick := time.NewTicker(stall / 5)
			defer tick.Stop()
			for began := time.Now(); time.Since(began) < limit; {
				select {
				case <-r.Context().Done():
					return
				case <-tick.C:
				}
				if left != 0 {
					w.WriteHeader(left)
					left = 0
				}
				_, _ = io.WriteString(w, " ")
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
	always := func(h http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { h(w, r); return false }
	}
	for name, guard := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"document": always(drip(200, time.Minute)),
		"refusal":  always(drip(500, time.Minute)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			s.setGuard(guard)
			began := time.Now()
			_, err := client(t, registry.Options{StallTimeout: stall}, s).Resolve(t.Context(), s.host()+"/a/b:v1", "")
			if !errdefs.IsUnavailable(err) || time.Since(began) > 30*time.Second {
				t.Errorf("%v after %s", err, time.Since(began))
			}
		})
	}
	t.Run("token", func(t *testing.T) {
		t.Parallel()
		s := newShelf(t)
		p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
		guardWithTokens(t, s).server.Config.Handler = drip(200, time.Minute)
		began := time.Now()
		_, err := client(t, registry.Options{StallTimeout: stall}, s).Fetch(t.Context(), s.host()+"/a/b:v1", p.layer, 0)
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "too slow: not whole after 2.5s") || time.Since(began) > 30*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
	t.Run("blob", func(t *testing.T) {
		t.Parallel()
		s, other := newShelf(t), newShelf(t)
		s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.server.URL+"/x", http.StatusTemporaryRedirect)
			return false
		})
		other.setGuard(always(drip(200, 12*stall)))
		desc := ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1000}
		rc, err := client(t, registry.Options{StallTimeout: stall}, s).Fetch(t.Context(), s.host()+"/a/b:v1", desc, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if _, err := io.Copy(io.Discard, rc); err != nil {
			t.Error(err)
		}
	})
}

// TestPauseOfMirrors has a mirror ask for a pause of years: the registry behind
// it, which could not be reached either, is not waited for so long.
func TestPauseOfMirrors(t *testing.T) {
	t.Parallel()
	m1, m2, primary, _, config := mirrored(t, "", "")
	pause := func(code int, after string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", after)
			return status(code)(w, r)
		}
	}
	for _, tc := range []struct {
		first, second, last string
		want                time.Duration
	}{
		{"99999999", "Fri, 31 Dec 9999 23:59:59 GMT", "", 0},
		{"99999999", "7", "60", 7 * time.Second},
		{"99999999", "-7", "60", 0},
	} {
		m1.setGuard(pause(503, tc.first))
		m2.setGuard(pause(429, tc.second))
		primary.setGuard(pause(502, tc.last))
		_, err := client(t, registry.Options{Config: config}, m1, m2, primary).Resolve(t.Context(), primary.host()+"/a/b:v1", "")
		var e *registry.Error
		if !errors.As(err, &e) || !e.Temporary || e.RetryAfter != tc.want {
			t.Errorf("%+v: %#v", tc, e)
		}
	}
	// Nor is one that will not answer otherwise.
	m1.setGuard(pause(403, "99999999"))
	m2.setGuard(pause(404, "1"))
	primary.setGuard(pause(503, "20"))
	_, err := client(t, registry.Options{Config: config}, m1, m2, primary).Resolve(t.Context(), primary.host()+"/a/b:v1", "")
	var e *registry.Error
	if !errors.As(err, &e) || !e.Temporary || e.RetryAfter != 20*time.Second {
		t.Errorf("%#v", e)
	}
}

// TestSearchStops has a registry of a short name out of reach while its mirror
// refuses: the name is not looked for in the next one.
func TestSearchStops(t *testing.T) {
	t.Parallel()
	m, a, b := newShelf(t), newShelf(t), newShelf(t)
	b.image(t, "x", "v1", "b", ocispec.Platform{})
	config := parseConf(t, "unqualified-search-registries = [%q, %q]\n[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n",
		a.host(), b.host(), a.host(), m.host())
	a.setGuard(status(http.StatusBadGateway))
	for _, code := range []int{401, 403, 404} {
		m.setGuard(status(code))
		image, err := client(t, registry.Options{Config: config}, m, a, b).Resolve(t.Context(), "x:v1", "")
		var e *registry.Error
		if !errors.As(err, &e) || !e.Temporary {
			t.Errorf("%d: %s, %v", code, image.Name, err)
		}
	}
}

// TestHalfOfALie has a mirror send wrong bytes and cut, and the registry the
// rest: the blob is asked for once more, of the registry alone.
func TestHalfOfALie(t *testing.T) {
	t.Parallel()
	m1, primary := newShelf(t), newShelf(t)
	for _, s := range []*shelf{m1, primary} {
		s.image(t, "a/b", "v1", "same", ocispec.Platform{})
	}
	p := primary.image(t, "a/b", "v1", "same", ocispec.Platform{})
	c := client(t, registry.Options{Config: parseConf(t, "[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n", primary.host(), m1.host())}, m1, primary)
	image, err := c.Resolve(t.Context(), primary.host()+"/a/b:v1", "")
	if err != nil {
		t.Fatal(err)
	}
	half := len(p.content) / 2
	m1.setGuard(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(p.content)))
		_, _ = w.Write(bytes.ToUpper(p.content[:half]))
		return false
	})
	for i, offset := range []int{0, half} {
		rc, err := c.Fetch(t.Context(), image.Reference, p.layer, int64(offset))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		_ = rc.Close()
		if len(b) != half || (err == nil) != (i == 1) {
			t.Fatalf("%d: %d bytes, %v", i, len(b), err)
		}
	}
	if !c.Reject(image.Reference, p.layer.Digest) {
		t.Fatal("nobody is left")
	}
	m1.paths()
	if content, err := fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) || len(m1.paths()) != 0 {
		t.Errorf("%d bytes, %v", len(content), err)
	}
	if c.Reject(image.Reference, p.layer.Digest) {
		t.Error("the registry alone was wrong, and somebody is left")
	}
}

// TestWantedManifest names an index, and a manifest that it does not have: no
// other is taken instead.
func TestWantedManifest(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd := platform(t, "linux/amd64")
	p, q := s.image(t, "a/b", "", "x", amd).manifest, s.image(t, "a/b", "", "y", amd).manifest
	z := s.image(t, "a/b", "", "z", platform(t, "linux/s390x")).manifest
	plain := p
	plain.Platform = nil
	single := s.index(t, "a/b", "", plain)
	wanted := s.index(t, "a/b", "", z)
	outer := s.index(t, "a/b", "", s.index(t, "a/b", "", wanted), s.index(t, "a/b", "", p))
	c := client(t, registry.Options{Platform: amd}, s)
	for name, tc := range map[string]struct {
		index, manifest digest.Digest
		class           func(error) bool
	}{
		"another image":                 {single.Digest, q.Digest, errdefs.IsPermissionDenied},
		"an index without the platform": {outer.Digest, wanted.Digest, errdefs.IsNotFound},
	} {
		image, err := c.Resolve(t.Context(), s.host()+"/a/b@"+tc.index.String(), tc.manifest)
		if !tc.class(err) {
			t.Errorf("%s: %s, %v", name, image.Manifest, err)
		}
	}
	if image, err := c.Resolve(t.Context(), s.host()+"/a/b@"+single.Digest.String(), p.Digest); err != nil || image.Manifest != p.Digest {
		t.Errorf("the one: %s, %v", image.Manifest, err)
	}
}
