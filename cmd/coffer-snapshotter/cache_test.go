// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]address{
		"127.0.0.1:5001": {network: "tcp", host: "127.0.0.1:5001"}, "tcp://[::1]:5001": {network: "tcp", host: "[::1]:5001"}, ":5001": {network: "tcp", host: ":5001"},
		"unix:///run/a.sock": {network: "unix", host: "/run/a.sock"}, "vsock://:5001": {network: "vsock", port: 5001},
		"": {}, "host": {}, "host:": {}, "unix://a": {}, "unix:a": {}, "vsock://5001": {}, "vsock://2:5001": {}, "vsock://:0": {}, "vsock://:4294967295": {}, "http://host:1": {},
	} {
		got, err := parseAddress(text)
		if got != want || (err == nil) != (want != address{}) {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

// freePort is a port of loopback that nobody has at the moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// guest is a guest's own registry client with the cache as its first mirror,
// as docs/pulling.md has it.
func guest(t *testing.T, mirror string, r *imagetest.Registry) *registry.Client {
	t.Helper()
	config, err := conf.Parse(fmt.Appendf(nil, `
[[registry]]
location = %[1]q
insecure = true
[[registry.mirror]]
location = "%[2]s"
insecure = true
pull-from-mirror = "digest-only"
namespace-proxy = %[1]q
`, r.Host(), mirror))
	if err != nil {
		t.Fatal(err)
	}
	logins, err := login.Parse(fmt.Appendf(nil, `{"auths":{%q:{"username":"guest","password":"of-the-guest"}}}`, r.Host()), login.Options{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{Config: config, Credentials: logins, Insecure: []string{r.Host()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// Guests with a login of their own pull through the cache of a node that has
// another: manifests come from the registry, each layer once; without the cache
// everything comes from the registry.
func TestGuestsPullThroughTheCache(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	layer := imagetest.Layer{Random: 1 << 20}
	p := r.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{layer, layer, layer}})
	// The registry knows one login, which both have here.
	r.RequireLogin(&imagetest.Login{User: "guest", Password: "of-the-guest", Bearer: true})
	dir := t.TempDir()
	credentials := filepath.Join(dir, "config.json")
	if err := os.WriteFile(credentials, fmt.Appendf(nil, `{"auths":{%q:{"username":"guest","password":"of-the-guest"}}}`, r.Host()), 0o600); err != nil {
		t.Fatal(err)
	}
	at, metrics := freePort(t), freePort(t)
	c := CacheConfig{
		Address: at, Root: filepath.Join(dir, "cache"), MaxBytes: 1 << 30, Registries: []string{"http://" + r.Host()},
		CredentialsFile: credentials, MetricsAddress: metrics,
	}
	b, err := startCache(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pull := func(client *registry.Client) error {
		image, err := client.Resolve(t.Context(), p.Reference, p.Manifest.Digest)
		if err != nil {
			return err
		}
		for i, layer := range image.Layers {
			body, err := client.Fetch(t.Context(), p.Reference, layer.Descriptor, 0)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(body)
			_ = body.Close()
			if err != nil || !bytes.Equal(got, p.Layers[i].Blob) {
				return fmt.Errorf("layer %d: %d bytes, %w", i, len(got), err)
			}
		}
		return nil
	}
	const guests = 4
	var clients []*registry.Client
	for range guests + 1 {
		clients = append(clients, guest(t, at, r))
	}
	var wg sync.WaitGroup
	for _, client := range clients[:guests] {
		wg.Go(func() {
			if err := pull(client); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(r.Requests(p.Manifest.Digest.String())); n != guests {
		t.Errorf("the manifest left the registry %d times", n)
	}
	for _, l := range p.Layers {
		if n := len(r.Requests(l.Digest.String())); n != 1 {
			t.Errorf("%s left the registry %d times", l.Digest, n)
		}
	}
	if text := scrapeMetrics(t, "http://"+metrics+"/metrics"); !strings.Contains(text, "\ncoffer_cache_requests_total{result=\"miss\"} 3\n") {
		t.Errorf("metrics: %s", text)
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	if err := pull(clients[guests]); err != nil {
		t.Errorf("without the cache: %v", err)
	}
}

// A cache whose disk has changed under it, so that it lies, and one whose
// registry lies, cost a guest one retry at the registry.
func TestLyingCache(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := r.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{{Random: 1 << 20}, {Random: 1 << 20}}})
	c := Default().Cache
	c.Address, c.Root, c.Registries = freePort(t), t.TempDir(), []string{"http://" + r.Host()}
	b, err := startCache(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	// read is what a puller does with a layer: it goes on where it was, and asks
	// elsewhere after wrong bytes.
	read := func(client *registry.Client, i int) (tries int) {
		l := p.Layers[i]
		var got []byte
		for tries = 1; tries < 10; tries++ {
			body, err := client.Fetch(t.Context(), p.Reference, l.Descriptor, int64(len(got)))
			if err != nil {
				t.Fatal(err)
			}
			part, err := io.ReadAll(body)
			_ = body.Close()
			got = append(got, part...)
			if bytes.Equal(got, l.Blob) {
				return tries
			}
			if err != nil {
				continue
			}
			if got = nil; !client.Reject(p.Reference, l.Digest) {
				t.Fatal("there is no other place to ask")
			}
		}
		return tries
	}
	if tries := read(guest(t, c.Address, r), 0); tries != 1 {
		t.Errorf("through a good cache: %d tries", tries)
	}
	file := filepath.Join(c.Root, "blobs", "sha256", fmt.Sprintf("%s.%d", p.Layers[0].Digest.Encoded(), p.Layers[0].Size))
	lie := bytes.Clone(p.Layers[0].Blob)
	lie[1000] ^= 1
	if err := os.WriteFile(file, lie, 0o600); err != nil {
		t.Fatal(err)
	}
	if tries := read(guest(t, c.Address, r), 0); tries != 2 {
		t.Errorf("through a cache that lies: %d tries", tries)
	}
	d := p.Layers[1].Digest.String()
	r.Fail(d, imagetest.Fault{Times: 1, Edit: func(b []byte) []byte { b[1000] ^= 1; return b }})
	// Cut before its end, the rest from the registry, wrong, all from there.
	if tries := read(guest(t, c.Address, r), 1); tries > 3 {
		t.Errorf("through a cache of a registry that lies: %d tries", tries)
	}
	if n := len(r.Requests(d)); n > 3 {
		t.Errorf("the registry was asked %d times", n)
	}
}

func scrapeMetrics(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// The cache listens at every kind of address that the machine has.
func TestCacheListens(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sn") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	c := Default().Cache
	c.Address, c.Root, c.Registries = "unix://"+socket, filepath.Join(dir, "cache"), []string{"r.example"}
	b, err := startCache(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://cache/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
	l, err := address{network: "vsock", port: 51234}.listen(t.Context())
	if err != nil {
		t.Logf("no vsock here: %v", err)
		return
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestCacheStartRefuses(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good := Default().Cache
	good.Address, good.Registries = freePort(t), []string{"r.example"}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, edit := range map[string]func(*CacheConfig){
		"cache.address":          func(c *CacheConfig) { c.Address = taken.Addr().String() },
		"cache.metrics_address":  func(c *CacheConfig) { c.MetricsAddress = taken.Addr().String() },
		"cache.ca_files":         func(c *CacheConfig) { c.CAFiles = []string{bad} },
		"cache.credentials_file": func(c *CacheConfig) { c.CredentialsFile = bad },
		"not a directory":        func(c *CacheConfig) { c.Root = bad },
	} {
		c := good
		c.Root = t.TempDir()
		edit(&c)
		if _, err := startCache(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
