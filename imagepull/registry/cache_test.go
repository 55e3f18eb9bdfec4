// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

func TestCacheAddress(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"http://127.0.0.1:5001": true, "http://cache.example": true, "http://[::1]:80": true,
		"unix:///run/coffer/cache.sock": true, "vsock://2:5001": true, "vsock://4294967294:4294967294": true,
		"127.0.0.1:5001": false, "https://a:1": false, "http://": false, "http://:1": false, "http://a:": false, "http://a:0": false,
		"http://a:1/": false, "http://a/v2": false, "http://u:p@a": false, "http://a?b": false, "http://a#b": false, "http://a:65536": false,
		"unix://a": false, "unix:/a": false, "vsock://:5001": false, "vsock://2": false, "vsock://2:0": false, "vsock://-1:1": false,
		"vsock://2:1:1": false, "vsock://4294967295:1": false, "vsock://2:4294967295": false, "tcp://a:1": false, "a": false,
	} {
		c, err := registry.NewClient(registry.Options{Cache: text})
		if ok != (err == nil) || !ok && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// beside is a registry that wants a login and a cache with the same image, and
// the options of a client that has both.
func beside(t *testing.T) (cache, primary *shelf, p pushed, opts registry.Options) {
	t.Helper()
	cache, primary = newShelf(t), newShelf(t)
	for _, s := range []*shelf{cache, primary} {
		p = s.image(t, "a/b", "v1", "same", ocispec.Platform{})
	}
	primary.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "u" && password == "secret" {
			return true
		}
		w.Header().Set("WWW-Authenticate", "Basic realm=shelf")
		return status(http.StatusUnauthorized)(w, r)
	})
	logins, err := login.Parse(fmt.Appendf(nil, `{"auths":{%q:{"username":"u","password":"secret"},%q:{"username":"u","password":"of the cache"}}}`,
		primary.host(), cache.host()), login.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return cache, primary, p, registry.Options{Credentials: logins, Cache: "http://" + cache.host()}
}

// blobs counts the requests for blobs that were let in, and forgets all.
func (s *shelf) blobs() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.Contains(r.URL.Path, "/blobs/") {
			n++
		}
	}
	s.requests = nil
	return n
}

// The cache is asked for blobs and for nothing else, hears no login, and is told
// which registry is meant.
func TestCacheIsAskedForBlobs(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			cache, primary, p, opts := beside(t)
			if network == "unix" {
				path := filepath.Join(t.TempDir(), "s")
				l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
				if err != nil {
					t.Fatal(err)
				}
				server := &http.Server{Handler: http.HandlerFunc(cache.serve), ReadHeaderTimeout: time.Minute}
				go func() { _ = server.Serve(l) }()
				t.Cleanup(func() { _ = server.Close() })
				opts.Cache = "unix://" + path
			}
			_, content, err := pull(t, client(t, opts, primary), primary.host()+"/a/b:v1")
			if err != nil || !bytes.Equal(content, p.content) {
				t.Fatalf("%d bytes, %v", len(content), err)
			}
			if n := primary.blobs(); n != 0 {
				t.Errorf("the registry was asked for %d blobs", n)
			}
			cache.mu.Lock()
			defer cache.mu.Unlock()
			if len(cache.requests) != 2 {
				t.Errorf("the cache had %d requests, want those for config and layer", len(cache.requests))
			}
			for _, r := range cache.requests {
				if !strings.Contains(r.URL.Path, "/a/b/blobs/") || r.URL.RawQuery != "ns="+strings.ReplaceAll(primary.host(), ":", "%3A") {
					t.Errorf("the cache was asked for %s", r.URL)
				}
				if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
					t.Errorf("the cache was sent a login")
				}
			}
		})
	}
}

// What the cache does wrong costs one request to it; then it is left alone. That
// it has not a blob is nothing wrong.
func TestCacheAnswers(t *testing.T) {
	t.Parallel()
	answer := func(code int, header ...string) func(*shelf) {
		return func(s *shelf) {
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				for i := 0; i < len(header); i += 2 {
					w.Header().Set(header[i], header[i+1])
				}
				return status(code)(w, r)
			})
		}
	}
	for name, tc := range map[string]struct {
		harm  func(*shelf)
		cache int // requests for config and layer of two pulls
	}{
		"none":           {func(*shelf) {}, 4},
		"nothing there":  {func(s *shelf) { s.drop("") }, 4},
		"away":           {func(s *shelf) { s.server.CloseClientConnections(); s.server.Close() }, 0},
		"a login":        {answer(401, "WWW-Authenticate", "Basic realm=cache"), 1},
		"a token":        {answer(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`), 1},
		"refused":        {answer(403), 1},
		"busy":           {answer(429, "Retry-After", "3600"), 1},
		"ill":            {answer(500), 1},
		"no gateway":     {answer(502), 1},
		"stops":          {answer(503), 1},
		"nothing":        {answer(204), 1},
		"sent elsewhere": {answer(307, "Location", "http://127.0.0.1:1/v2/"), 1},
		"another range":  {answer(206, "Content-Range", "bytes 7-8/9"), 1},
		"too short":      {answer(200, "Content-Length", "2"), 1},
		"never ready":    {func(s *shelf) { s.setGuard(silence) }, 1},
		"other bytes":    {func(s *shelf) { s.spoil() }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache, primary, p, opts := beside(t)
			opts.StallTimeout = time.Second
			tc.harm(cache)
			c := client(t, opts, primary)
			for range 2 {
				_, content, err := pull(t, c, primary.host()+"/a/b:v1")
				if err != nil || !bytes.Equal(content, p.content) {
					t.Fatalf("%d bytes, %v", len(content), err)
				}
			}
			if n := cache.blobs(); n != tc.cache {
				t.Errorf("the cache was asked for %d blobs, want %d", n, tc.cache)
			}
		})
	}
}

// silence answers when the client has given up.
func silence(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return false
}

// spoil changes a byte of everything.
func (s *shelf) spoil() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, o := range s.objects {
		o.body = bytes.Clone(o.body)
		o.body[len(o.body)/2] ^= 1
		s.objects[path] = o
	}
}

// A cache that fails in the middle of a blob costs no error and no try: the rest
// comes from the registry, from the byte on that is next.
func TestCacheFailsInTheMiddle(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(w http.ResponseWriter, r *http.Request){
		"cut":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, //nolint:forbidigo // cuts the connection
		"stalls":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"ends":    func(http.ResponseWriter, *http.Request) {},
		"goes on": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const half = 1000
			cache, primary, p, opts := beside(t)
			opts.StallTimeout = time.Second
			cache.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, p.layer.Digest.String()) {
					return true
				}
				w.WriteHeader(http.StatusOK) // of no length
				sent := p.content[:half]
				if name == "goes on" {
					sent = p.content
				}
				_, _ = w.Write(sent)
				_ = http.NewResponseController(w).Flush()
				harm(w, r)
				return false
			})
			_, content, err := pull(t, client(t, opts, primary), primary.host()+"/a/b:v1")
			if err != nil || !bytes.Equal(content, p.content) {
				t.Fatalf("%d bytes, %v", len(content), err)
			}
			var ranges []string
			primary.mu.Lock()
			defer primary.mu.Unlock()
			for _, r := range primary.requests {
				if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Authorization") != "" {
					ranges = append(ranges, r.Header.Get("Range"))
				}
			}
			want := fmt.Sprintf("[bytes=%d-%d]", half, len(p.content)-1)
			if name == "goes on" { // more than the blob has is not read
				want = "[]"
			}
			if got := fmt.Sprint(ranges); got != want {
				t.Errorf("the registry was asked for %s, want %s", got, want)
			}
		})
	}
}

// Wrong bytes of a cache are for the reader of the blob to find; told so, the
// client asks the registry for this blob and for others.
func TestCacheSendsWrongBytes(t *testing.T) {
	t.Parallel()
	cache, primary, p, opts := beside(t)
	var log bytes.Buffer
	opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
	c := client(t, opts, primary)
	image, err := c.Resolve(t.Context(), primary.host()+"/a/b:v1", "")
	if err != nil {
		t.Fatal(err)
	}
	cache.spoil()
	if content, err := fetch(t, c, image); err != nil || bytes.Equal(content, p.content) {
		t.Fatalf("the cache was not asked: %v", err)
	}
	if !c.Reject(image.Reference, p.layer.Digest) {
		t.Fatal("the registry is not worth a try")
	}
	cache.blobs()
	if content, err := fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	if n := cache.blobs(); n != 0 {
		t.Errorf("the cache was asked %d times after that", n)
	}
	if c.Reject(image.Reference, p.layer.Digest) {
		t.Error("the registry's own bytes are wrong too, and there is somebody else to ask")
	}
	if !strings.Contains(log.String(), "wrong bytes") || strings.Contains(log.String(), "secret") {
		t.Errorf("log: %s", &log)
	}
}

// Errors are those of the registry; whether they pass is for it to say.
func TestCacheIsNotInErrors(t *testing.T) {
	t.Parallel()
	cache, primary, p, opts := beside(t)
	c := client(t, opts, primary)
	image, err := c.Resolve(t.Context(), primary.host()+"/a/b:v1", "")
	if err != nil {
		t.Fatal(err)
	}
	primary.drop("/blobs/")
	cache.setGuard(status(http.StatusServiceUnavailable))
	_, err = fetch(t, c, image)
	var e *registry.Error
	if !errors.As(err, &e) || e.Temporary || !errdefs.IsNotFound(err) || strings.Contains(err.Error(), cache.host()) {
		t.Errorf("got %v", err)
	}
	// While the registry is away, a cache that is back serves.
	cache.setGuard(nil)
	primary.server.CloseClientConnections()
	primary.server.Close()
	if content, err := fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) {
		t.Errorf("%d bytes, %v", len(content), err)
	}
}

// A registry that the configuration blocks stays blocked, and one that it has
// elsewhere is named by where it is.
func TestCacheAndRegistriesConfiguration(t *testing.T) {
	t.Parallel()
	cache, primary, p, opts := beside(t)
	opts.Config = parseConf(t, `
[[registry]]
prefix = "moved.example"
location = "%s/a"
insecure = true
[[registry]]
prefix = "blocked.example"
blocked = true
`, primary.host())
	opts.Credentials = nil
	primary.setGuard(nil)
	c := client(t, opts, primary)
	if _, content, err := pull(t, c, "moved.example/b:v1"); err != nil || !bytes.Equal(content, p.content) {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	cache.mu.Lock()
	for _, r := range cache.requests {
		if ns := r.URL.Query().Get("ns"); ns != primary.host() || !strings.HasPrefix(r.URL.Path, "/v2/a/b/") {
			t.Errorf("the cache was asked for %s", r.URL)
		}
	}
	cache.mu.Unlock()
	if n := cache.blobs(); n != 2 {
		t.Errorf("the cache was asked for %d blobs", n)
	}
	desc := ocispec.Descriptor{Digest: p.layer.Digest, Size: p.layer.Size}
	if _, err := c.Fetch(t.Context(), "blocked.example/b:v1", desc, 0); !errdefs.IsPermissionDenied(err) {
		t.Errorf("got %v", err)
	}
	if n := cache.blobs(); n != 0 {
		t.Error("the cache was asked for a blocked registry")
	}
}

// The middle of a blob comes from the cache too.
func TestCacheRange(t *testing.T) {
	t.Parallel()
	cache, primary, p, opts := beside(t)
	c := client(t, opts, primary)
	body, err := c.Fetch(t.Context(), primary.host()+"/a/b:v1", p.layer, 17)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, p.content[17:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if c, r := cache.blobs(), primary.blobs(); c != 1 || r != 0 {
		t.Errorf("cache %d, registry %d requests", c, r)
	}
}
