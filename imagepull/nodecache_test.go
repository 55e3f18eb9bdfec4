// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// cachedEnv is a puller that may fail no request, with a registry that wants a
// login and a cache that has all its blobs.
func cachedEnv(t *testing.T, keys *keyring, spooled bool) (e *env, cache *imagetest.Registry) {
	t.Helper()
	root, r := newTmpfs(t, "128m"), imagetest.New(t)
	cache = imagetest.NewMirror(t, r)
	logins, err := login.Parse(fmt.Appendf(nil, `{"auths":{%q:{"username":"u","password":"secret"}}}`, r.Host()), login.Options{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{
		Insecure: []string{r.Host()}, Credentials: logins, Cache: cache.URL(), StallTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	e = &env{t: t, registry: r, keys: keys, root: root}
	if e.store, err = store.Open(filepath.Join(root, "store"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	e.puller = imagepull.NewPuller(client, keys, e.store, imagepull.Options{
		Tries: 1, Scratch: filepath.Join(root, "scratch"), VerifyBeforeUnpack: spooled,
	})
	t.Cleanup(func() {
		e.puller.Close()
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, cache
}

// However the node's cache lies or breaks, the image is the right one, and the
// registry is asked once for what the cache did not bring.
func TestNodeCacheIsNotTrusted(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, "kbs:///default/key/1")
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	const size = 300_000
	for name, tc := range map[string]struct {
		fault imagetest.Fault
		resumes,
		asks bool // the registry, once: for the rest, or for all
	}{
		"none":                         {},
		"first byte wrong":             {fault: imagetest.Fault{Edit: flip(0)}, asks: true},
		"a byte wrong":                 {fault: imagetest.Fault{Edit: flip(size / 2)}, asks: true},
		"last byte wrong":              {fault: imagetest.Fault{Edit: flip(size - 1)}, asks: true},
		"nothing but zeros":            {fault: imagetest.Fault{Edit: func(b []byte) []byte { clear(b); return b }}, asks: true},
		"longer":                       {fault: imagetest.Fault{Chunked: true, Edit: func(b []byte) []byte { return append(b, b...) }}},
		"shorter":                      {fault: imagetest.Fault{Chunked: true, Edit: func(b []byte) []byte { return b[:size/2] }}, asks: true, resumes: true},
		"shorter, and says so":         {fault: imagetest.Fault{Edit: func(b []byte) []byte { return b[:size/2] }}, asks: true},
		"cut":                          {fault: imagetest.Fault{Cut: true, After: size / 2}, asks: true, resumes: true},
		"cut before its last byte":     {fault: imagetest.Fault{Cut: true, After: -1}, asks: true, resumes: true},
		"stalls":                       {fault: imagetest.Fault{Stall: true, After: size / 2}, asks: true, resumes: true},
		"never answers":                {fault: imagetest.Fault{Mute: true}, asks: true},
		"ill":                          {fault: imagetest.Fault{Status: http.StatusInternalServerError}, asks: true},
		"asks to wait":                 {fault: imagetest.Fault{Status: http.StatusServiceUnavailable, RetryAfter: "3600"}, asks: true},
		"wants a login":                {fault: imagetest.Fault{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {"Basic realm=cache"}}}, asks: true},
		"redirects":                    {fault: imagetest.Fault{Redirect: "http://127.0.0.1:1"}, asks: true},
		"not HTTP":                     {fault: imagetest.Fault{Raw: func() io.Reader { return strings.NewReader("220 nonsense\r\n\r\n") }}, asks: true},
		"compressed, as it says":       {fault: imagetest.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}}},
		"has it not":                   {fault: imagetest.Fault{Status: http.StatusNotFound}, asks: true},
		"wrong bytes, then cut":        {fault: imagetest.Fault{Cut: true, After: size / 2, Edit: flip(7)}, asks: true, resumes: true},
		"wrong bytes, then stalls":     {fault: imagetest.Fault{Stall: true, After: size / 2, Edit: flip(7)}, asks: true, resumes: true},
		"wrong bytes, and ends early":  {fault: imagetest.Fault{Chunked: true, Edit: func(b []byte) []byte { b[7] ^= 1; return b[:size/2] }}, asks: true, resumes: true},
		"right bytes of another blob":  {fault: imagetest.Fault{Edit: func(b []byte) []byte { return append(b[1:], b[0]) }}, asks: true},
		"more than it says, and wrong": {fault: imagetest.Fault{Length: size, Edit: flip(9)}, asks: true},
	} {
		for _, spooled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/spooled=%v", name, spooled), func(t *testing.T) {
				t.Parallel()
				e, cache := cachedEnv(t, newKeyring(key), spooled)
				l := imagetest.Layer{Random: size, Compression: imagetest.Gzip, Key: &key}
				p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{l, l}})
				e.registry.RequireLogin(&imagetest.Login{User: "u", Password: "secret"})
				bad := p.Layers[0].Digest.String()
				cache.Fail(bad, tc.fault)
				if err := e.top(p); err != nil {
					t.Fatal(err)
				}
				e.has(p)
				e.clean(p, len(p.Layers))
				asked := cache.Requests(bad)
				if len(asked) != 1 || asked[0].Authorization != "" {
					t.Errorf("requests of the cache: %+v", asked)
				}
				served := letIn(e.registry.Requests(bad))
				lied := tc.resumes && tc.fault.Edit != nil && name != "shorter"
				want := map[bool]int{true: 1}[tc.asks]
				if lied { // the rest, and then all of it
					want = 2
				}
				if len(served) != want {
					t.Fatalf("the registry was asked %d times, want %d: %+v", len(served), want, served)
				}
				if tc.resumes && served[0].Range == "" {
					t.Error("the registry was asked for what the cache had brought")
				}
				if n := len(letIn(e.registry.Requests(p.Layers[1].Digest.String()))); n > 1 {
					t.Errorf("another layer was asked for %d times", n)
				}
			})
		}
	}
}

// letIn are the requests with a login.
func letIn(list []imagetest.Request) (in []imagetest.Request) {
	for _, r := range list {
		if r.Authorization != "" {
			in = append(in, r)
		}
	}
	return in
}

// A cache that is killed in the middle of an image, with connections and all,
// costs what it had not sent yet.
func TestNodeCacheIsKilled(t *testing.T) {
	t.Parallel()
	e, cache := cachedEnv(t, nil, false)
	p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{{Random: 1 << 20}, {Random: 1 << 20}, {Random: 1 << 20}}})
	e.registry.RequireLogin(&imagetest.Login{User: "u", Password: "secret"})
	for _, l := range p.Layers {
		cache.Fail(l.Digest.String(), imagetest.Fault{Stall: true, After: 1 << 19})
	}
	go func() {
		for _, l := range p.Layers[:2] {
			<-cache.Began(l.Digest.String())
		}
		cache.Away()
	}()
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	e.registry.Settle()
	for i, l := range p.Layers {
		if n := len(letIn(e.registry.Requests(l.Digest.String()))); n != 1 {
			t.Errorf("layer %d was asked for %d times", i, n)
		}
	}
}
