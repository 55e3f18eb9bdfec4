// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/snapshotter/cache"
)

// A blob that does not match is not kept, and nobody gets its end.
func TestWrongBytes(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]imagetest.Fault{
		"flipped":  {Edit: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }},
		"chunked":  {Edit: func(b []byte) []byte { b[0] ^= 1; return b }, Chunked: true},
		"shorter":  {Edit: func(b []byte) []byte { return b[:len(b)/2] }},
		"longer":   {Edit: func(b []byte) []byte { return append(b, 0) }},
		"nothing":  {Edit: func([]byte) []byte { return nil }},
		"unending": {Stream: imagetest.Filled("x", 'y', 2<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			p := push(t, r, 1<<20, 100)
			l := p.Layers[0]
			r.Fail(l.Digest.String(), fault)
			n := start(t, t.TempDir(), cache.Options{}, r.Host())
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					// Cut, refused where it came too late, or nothing of nothing.
					if got := n.get(l.Digest); got.status == http.StatusOK && got.err == nil {
						t.Errorf("a wrong blob of %d bytes ends as if it were right", len(got.body))
					}
				})
			}
			wg.Wait()
			if got := n.get(l.Digest); got.status != http.StatusNotFound {
				t.Errorf("afterwards: %d", got.status)
			}
			n.counts(map[string]float64{"blobs": 0, "bytes": 0, "downloads": 0})
			n.wants(p.Layers[1].Digest, p.Layers[1].Blob)
			n.stop()
			if left := n.files("partial/"); len(left) != 0 {
				t.Errorf("partial blobs: %v", left)
			}
			if asked := len(r.Requests(l.Digest.String())); asked != 1 {
				t.Errorf("the registry was asked %d times", asked)
			}
		})
	}
}

// A download that breaks off goes on where it was.
func TestResume(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]imagetest.Fault{
		"cut twice":     {{Cut: true, After: 300_000, Times: 1}, {Cut: true, After: 300_000, Times: 1}},
		"cut, no range": {{Cut: true, After: 300_000, Times: 1}, {IgnoreRange: true, Times: 1}},
		"stalls":        {{Stall: true, After: 300_000, Times: 1}},
		"mute":          {{Mute: true, Times: 1}},
		"chunked":       {{Cut: true, Chunked: true, After: 300_000, Times: 1}},
		"busy":          {{Status: 503, Times: 1}, {Status: 429, Times: 1}, {Status: 500, Times: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			p := push(t, r, 1<<20)
			l := p.Layers[0]
			for _, f := range faults {
				r.Fail(l.Digest.String(), f)
			}
			n := start(t, t.TempDir(), cache.Options{StallTimeout: 300 * time.Millisecond}, r.Host())
			n.wants(l.Digest, l.Blob)
			asked := r.Requests(l.Digest.String())
			if retries := n.metrics()["retries_total"]; retries == 0 || int(retries) != len(asked)-1 {
				t.Errorf("%v retries of %d requests", retries, len(asked))
			}
			if faults[0].After > 0 && asked[1].Range == "" {
				t.Errorf("asked from the start: %+v", asked)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault imagetest.Fault
		want  int
		times int
	}{
		"not found":    {imagetest.Fault{Status: 404}, 404, 1},
		"unauthorized": {imagetest.Fault{Status: 401}, 404, 1},
		"forbidden":    {imagetest.Fault{Status: 403}, 404, 1},
		"broken":       {imagetest.Fault{Status: 500}, 502, 5},
		"busy":         {imagetest.Fault{Status: 429}, 502, 5},
		"nonsense":     {imagetest.Fault{Raw: func() io.Reader { return strings.NewReader("hello\n") }}, 502, 5},
		"in a circle":  {imagetest.Fault{Redirect: "/v2/"}, 404, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			d := push(t, r, 100).Layers[0].Digest
			r.Fail(d.String(), tc.fault)
			n := start(t, t.TempDir(), cache.Options{}, r.Host())
			for range 2 { // the second time from memory
				if got := n.get(d); got.status != tc.want {
					t.Errorf("%d %s", got.status, got.body)
				}
			}
			if got := len(r.Requests(d.String())); got != tc.times {
				t.Errorf("the registry was asked %d times", got)
			}
		})
	}
	r := imagetest.New(t)
	d := push(t, r, 100).Layers[0].Digest
	r.Away()
	n := start(t, t.TempDir(), cache.Options{}, r.Host())
	if got := n.get(d); got.status != http.StatusBadGateway {
		t.Errorf("away: %d %s", got.status, got.body)
	}
}

// syncBuffer is a log that several write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// The node's login opens what guests ask for; a guest's is not passed on, and
// neither goes to where the registry redirects to.
func TestLogins(t *testing.T) {
	t.Parallel()
	const secret = "Bmljb29s"
	for _, bearer := range []bool{false, true} {
		r, elsewhere := imagetest.New(t), imagetest.New(t)
		p := push(t, r, 1000, 2000, 3000)
		mirror := imagetest.NewMirror(t, r)
		login := &imagetest.Login{User: "node", Password: secret, Bearer: bearer}
		r.RequireLogin(login)
		var log syncBuffer
		opts := cache.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		asked := 0
		opts.Credential = func(_ context.Context, registry, repository string) (cache.Credential, error) {
			asked++
			if registry != r.Host() || repository != "a/b" {
				t.Errorf("a login for %s of %s was asked for", repository, registry)
			}
			return cache.Credential{Username: "node", Password: secret}, nil
		}
		n := start(t, t.TempDir(), opts, r.Host())
		n.wants(p.Layers[0].Digest, p.Layers[0].Blob)
		// To another server, which has it.
		d := p.Layers[1].Digest
		r.Fail(d.String(), imagetest.Fault{Redirect: mirror.URL()})
		n.wants(d, p.Layers[1].Blob)
		if got := mirror.Requests(d.String()); len(got) != 1 || got[0].Authorization != "" {
			t.Errorf("elsewhere was asked: %+v", got)
		}
		if asked == 0 {
			t.Error("the node's login was not asked for")
		}
		// A guest's login, right as it is, opens nothing.
		opts.Credential = nil
		anonymous := start(t, t.TempDir(), opts, r.Host())
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		req.SetBasicAuth("node", secret)
		got := anonymous.get(d, "Authorization", req.Header.Get("Authorization"))
		if got.status != http.StatusNotFound || got.header.Get("Www-Authenticate") != "" {
			t.Errorf("with a guest's login: %d %v", got.status, got.header)
		}
		// A signed URL is in no log.
		signed := p.Layers[2].Digest
		elsewhere.Away()
		r.Fail(signed.String(), imagetest.Fault{Redirect: elsewhere.URL() + "/x?signature=" + secret})
		if got := n.get(signed); got.status != http.StatusBadGateway {
			t.Errorf("redirected to where nobody is: %d", got.status)
		}
		n.stop()
		anonymous.stop()
		if strings.Contains(log.String(), secret) || !strings.Contains(log.String(), "connection refused") {
			t.Errorf("log:\n%s", &log.b)
		}
	}
}

func TestLoginRefused(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	d := push(t, r, 1000).Layers[0].Digest
	r.RequireLogin(&imagetest.Login{User: "node", Password: "right", Bearer: true})
	for name, credential := range map[string]func(context.Context, string, string) (cache.Credential, error){
		"wrong": func(context.Context, string, string) (cache.Credential, error) {
			return cache.Credential{Username: "node", Password: "wrong"}, nil
		},
		"none": nil,
		"error": func(context.Context, string, string) (cache.Credential, error) {
			return cache.Credential{}, errors.New("no such file")
		},
	} {
		n := start(t, t.TempDir(), cache.Options{Credential: credential}, r.Host())
		if got := n.get(d); got.status != http.StatusNotFound || got.header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %d", name, got.status)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", cache.Credential{Password: "x"}, cache.Credential{Password: "x"}, cache.Credential{Password: "x"}); strings.Contains(s, "x") {
		t.Errorf("shows %s", s)
	}
}

// Over HTTPS, and from there nowhere without it.
func TestTLS(t *testing.T) {
	t.Parallel()
	r, plain := imagetest.NewTLS(t), imagetest.New(t)
	p := push(t, r, 1000, 2000)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(r.CA()) {
		t.Fatal("no certificate")
	}
	open := func(opts cache.Options) *node {
		opts.Registries = []string{r.Host()}
		return start(t, t.TempDir(), opts)
	}
	n := open(cache.Options{RootCAs: pool})
	n.wants(p.Layers[0].Digest, p.Layers[0].Blob)
	d := p.Layers[1].Digest
	r.Fail(d.String(), imagetest.Fault{Redirect: plain.URL()})
	if got := n.get(d); got.status < 400 || len(plain.Requests(d.String())) != 0 {
		t.Errorf("over HTTP: %d", got.status)
	}
	if got := open(cache.Options{}).get(p.Layers[0].Digest); got.status != http.StatusBadGateway {
		t.Errorf("with an unknown certificate: %d", got.status)
	}
}

// A download that nobody reads ends after a while.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 1<<20)
	d := p.Layers[0].Digest
	r.Fail(d.String(), imagetest.Fault{Stall: true, After: 1000, Times: 1})
	n := start(t, t.TempDir(), cache.Options{Linger: time.Millisecond}, r.Host())
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+blobPath("a/b", d), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	r.Settle() // the stalled request has ended
	n.wants(d, p.Layers[0].Blob)
}

// More downloads than may run are refused after a while.
func TestQueue(t *testing.T) {
	t.Parallel()
	g := newGated(t, 1000)
	n := start(t, t.TempDir(), cache.Options{MaxDownloads: 1, QueueTimeout: time.Millisecond}, g.host)
	body := n.begin(g.digest, 0)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if got := n.ask(method, "/v2/a/b/blobs/sha256:"+strings.Repeat("0", 64)); got.status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", method, got.status)
		}
	}
	close(g.gate)
	if b, err := io.ReadAll(body); err != nil || !bytes.Equal(b, g.blob) {
		t.Errorf("the first: %d bytes, %v", len(b), err)
	}
}

// Stopping cuts what is being read.
func TestStop(t *testing.T) {
	t.Parallel()
	g := newGated(t, 1<<20)
	c, err := cache.Open(t.TempDir(), cache.Options{Registries: []string{"http://" + g.host}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+blobPath("a/b", g.digest), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes and no error", len(b))
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, blobPath("a/b", g.digest), nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("closed: %d", w.Code)
	}
	server.Close()
}
