// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

// Guests that name the cache in [registry] cache find it at each kind of address.
// The registry wants a login, which they have and the node has not: the cache
// cannot get a blob, and they do.
func TestGuestsNameTheCache(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp", "unix"} {
		for _, private := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/private=%v", network, private), func(t *testing.T) {
				t.Parallel()
				r := imagetest.New(t)
				p := r.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{{Random: 1 << 20}, {Random: 1 << 20}}})
				if private {
					r.RequireLogin(&imagetest.Login{User: "guest", Password: "of-the-guest"})
				}
				dir := t.TempDir()
				c := CacheConfig{Address: "unix://" + filepath.Join(dir, "s"), Root: filepath.Join(dir, "cache"), MaxBytes: 1 << 30, Registries: []string{"http://" + r.Host()}}
				named := c.Address
				if network == "tcp" {
					c.Address = freePort(t)
					named = "http://" + c.Address
				}
				b, err := startCache(t.Context(), c, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = b.close() })
				logins, err := login.Parse(fmt.Appendf(nil, `{"auths":{%q:{"username":"guest","password":"of-the-guest"}}}`, r.Host()), login.Options{})
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for range 4 {
					client, err := registry.NewClient(registry.Options{Credentials: logins, Insecure: []string{r.Host()}, Cache: named})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(client.Close)
					wg.Go(func() { pullAll(t, client, p) })
				}
				wg.Wait()
				for _, l := range p.Layers {
					asked := 0
					for _, request := range r.Requests(l.Digest.String()) {
						if !private || request.Authorization != "" {
							asked++
						}
					}
					if want := map[bool]int{false: 1, true: 4}[private]; asked != want {
						t.Errorf("%s left the registry %d times, want %d", l.Digest, asked, want)
					}
				}
			})
		}
	}
}

func pullAll(t *testing.T, client *registry.Client, p imagetest.Pushed) {
	t.Helper()
	image, err := client.Resolve(t.Context(), p.Reference, p.Manifest.Digest)
	if err != nil {
		t.Error(err)
		return
	}
	for i, layer := range image.Layers {
		body, err := client.Fetch(t.Context(), p.Reference, layer.Descriptor, 0)
		if err != nil {
			t.Error(err)
			return
		}
		got, err := io.ReadAll(body)
		_ = body.Close()
		if err != nil || !bytes.Equal(got, p.Layers[i].Blob) {
			t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
		}
	}
}
