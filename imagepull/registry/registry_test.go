// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newClient(t *testing.T, r *imagetest.Registry, edit func(*registry.Options)) *registry.Client {
	t.Helper()
	opts := registry.Options{Insecure: []string{r.Host()}}
	if edit != nil {
		edit(&opts)
	}
	c, err := registry.NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestResolve(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	image := imagetest.Image{Layers: []imagetest.Layer{{Compression: imagetest.Gzip}, {Compression: imagetest.Zstd}}}
	p := r.Push(t, "a/b:v1", image)
	image.Platform = ocispec.Platform{OS: "linux", Architecture: "s390x"}
	other := r.Push(t, "a/b:other", image)
	docker := r.Push(t, "a/b:docker", imagetest.Image{Docker: true, Layers: []imagetest.Layer{{Docker: true, Compression: imagetest.Gzip}}})
	index := r.PushIndex(t, "a/b:index", false, other, p)
	list := r.PushIndex(t, "a/b:list", true, other, docker)
	byDigest := r.Host() + "/a/b@" + p.Manifest.Digest.String()

	for name, tc := range map[string]struct {
		ref      string
		manifest digest.Digest
		want     imagetest.Pushed
	}{
		"tag":                       {p.Reference, "", p},
		"digest in reference":       {byDigest, "", p},
		"digest beside a moved tag": {r.Host() + "/a/b:docker", p.Manifest.Digest, p},
		"index":                     {r.Host() + "/a/b:index", "", p},
		"index by digest":           {p.Reference, index.Digest, p},
		"docker":                    {docker.Reference, "", docker},
		"docker list":               {p.Reference, list.Digest, docker},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image, err := newClient(t, r, nil).Resolve(t.Context(), tc.ref, tc.manifest)
			if err != nil {
				t.Fatal(err)
			}
			if image.Manifest != tc.want.Manifest.Digest || len(image.Layers) != len(tc.want.Layers) {
				t.Fatalf("got %+v", image)
			}
			for i, l := range image.Layers {
				w := tc.want.Layers[i]
				if l.ChainID != w.ChainID || l.DiffID != w.DiffID || l.Digest != w.Digest || l.Parent != w.Parent {
					t.Errorf("layer %d: got %+v", i, l)
				}
			}
			if image.Find(tc.want.Chain()) != len(image.Layers)-1 || image.Find("sha256:no") != -1 {
				t.Error("Find is wrong")
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	layers := []imagetest.Layer{{}, {}}
	for name, tc := range map[string]struct {
		image imagetest.Image
		class func(error) bool
		text  string
	}{
		"other platform": {
			imagetest.Image{Layers: layers, Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}},
			errdefs.IsInvalidArgument, "image is for linux/s390x, wanted is linux/",
		},
		"fewer diff ids": {
			imagetest.Image{Layers: layers, EditConfig: func(c *ocispec.Image) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] }},
			errdefs.IsInvalidArgument, "manifest has 2 layers, config has 1 diff ids",
		},
		"more diff ids": {
			imagetest.Image{Layers: layers, EditConfig: func(c *ocispec.Image) {
				c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString("x"))
			}},
			errdefs.IsInvalidArgument, "manifest has 2 layers, config has 3 diff ids",
		},
		"sha512 diff id": {
			imagetest.Image{Layers: layers, EditConfig: func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = digest.SHA512.FromString("x") }},
			errdefs.IsInvalidArgument, "sha512",
		},
		"artifact": {
			imagetest.Image{EditManifest: func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.example" }},
			errdefs.IsInvalidArgument, "not that of an image",
		},
		"no such config": {
			imagetest.Image{EditManifest: func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("none") }},
			errdefs.IsNotFound, "config sha256:",
		},
		"config of another size": {
			imagetest.Image{EditManifest: func(m *ocispec.Manifest) { m.Config.Size++ }},
			errdefs.IsDataLoss, "the manifest says",
		},
		"negative size": {
			imagetest.Image{Layers: layers, EditManifest: func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }},
			errdefs.IsInvalidArgument, "size -1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			p := r.Push(t, "a/b:v1", tc.image)
			_, err := newClient(t, r, nil).Resolve(t.Context(), p.Reference, "")
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), r.Host()) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for status, tc := range map[int]struct {
		class     func(error) bool
		temporary bool
		text      string
	}{
		401: {errdefs.IsUnauthorized, false, "[registry] credentials"},
		403: {errdefs.IsPermissionDenied, false, "[registry] credentials"},
		404: {errdefs.IsNotFound, false, "check the name"},
		418: {errdefs.IsUnknown, false, "is this an OCI registry?"},
		429: {errdefs.IsUnavailable, true, "too many requests"},
		500: {errdefs.IsUnavailable, true, "try again later"},
		503: {errdefs.IsUnavailable, true, "try again later"},
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			p := r.Push(t, "a/b:v1", imagetest.Image{})
			r.Fail("v1", imagetest.Fault{Status: status, RetryAfter: "7"})
			_, err := newClient(t, r, nil).Resolve(t.Context(), p.Reference, "")
			var e *registry.Error
			if !errors.As(err, &e) || !tc.class(err) || e.Temporary != tc.temporary || e.Status != status || e.RetryAfter != 7*time.Second {
				t.Fatalf("got %#v %v", e, err)
			}
			for _, text := range []string{"registry " + r.Host() + ": a/b:v1", "injected by the test", tc.text} {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("no %q in %v", text, err)
				}
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	for _, bearer := range []bool{false, true} {
		t.Run(fmt.Sprintf("bearer=%v", bearer), func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
			r.RequireLogin(&imagetest.Login{User: "u", Password: "p:w", Bearer: bearer})
			for key, ok := range map[string]bool{
				"": false, r.Host(): true, "http://" + r.Host() + "/v2/": true, r.Host() + "/a": true, r.Host() + "/a/b": true, r.Host() + "/c": false, "elsewhere": false,
			} {
				creds, err := login.Parse(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, key, base64.StdEncoding.EncodeToString([]byte("u:p:w\n"))), login.Options{})
				if err != nil {
					t.Fatal(err)
				}
				c := newClient(t, r, func(o *registry.Options) { o.Credentials = creds })
				image, err := c.Resolve(t.Context(), p.Reference, "")
				if !ok {
					if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "[registry] credentials") {
						t.Errorf("%q: got %v", key, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%q: %v", key, err)
					continue
				}
				rc, err := c.Fetch(t.Context(), image.Reference, image.Layers[0].Descriptor, 0)
				if err != nil {
					t.Errorf("%q: %v", key, err)
					continue
				}
				_ = rc.Close()
			}
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	r := imagetest.NewTLS(t)
	p := r.Push(t, "a/b:v1", imagetest.Image{})
	if _, err := newClient(t, r, func(o *registry.Options) { o.Insecure, o.CAs = nil, r.CA() }).Resolve(t.Context(), p.Reference, ""); err != nil {
		t.Error(err)
	}
	_, err := newClient(t, r, func(o *registry.Options) { o.Insecure = nil }).Resolve(t.Context(), p.Reference, "")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "ca_files") {
		t.Errorf("unknown authority: %v", err)
	}
	plain := imagetest.New(t)
	_, err = newClient(t, plain, func(o *registry.Options) { o.Insecure = nil }).Resolve(t.Context(), plain.Host()+"/a/b", "")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "[registry] insecure") {
		t.Errorf("plain HTTP: %v", err)
	}
	if _, err := registry.NewClient(registry.Options{CAs: []byte("no PEM")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad CA: %v", err)
	}
}

func TestFetch(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 100_000}}})
	l := p.Layers[0]
	c := newClient(t, r, nil)
	for _, ignore := range []bool{false, true} {
		r.Heal()
		r.Fail(l.Digest.String(), imagetest.Fault{IgnoreRange: ignore})
		for _, offset := range []int64{0, 1, l.Size - 1} {
			rc, err := c.Fetch(t.Context(), p.Reference, l.Descriptor, offset)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if err != nil || !bytes.Equal(got, l.Blob[offset:]) {
				t.Errorf("offset %d: %d bytes, %v", offset, len(got), err)
			}
			_ = rc.Close()
		}
	}
	r.Heal()
	r.Replace("a/b", l.Digest, func(b []byte) []byte { return b[:50_000] })
	for _, offset := range []int64{0, 10, 60_000} {
		if _, err := c.Fetch(t.Context(), p.Reference, l.Descriptor, offset); !errdefs.IsDataLoss(err) {
			t.Errorf("truncated, offset %d: %v", offset, err)
		}
	}
}

func TestStallAndAway(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 100_000}}})
	l := p.Layers[0]
	c := newClient(t, r, func(o *registry.Options) { o.StallTimeout = 50 * time.Millisecond })
	r.Fail(l.Digest.String(), imagetest.Fault{Stall: true, After: 1000})
	rc, err := c.Fetch(t.Context(), p.Reference, l.Descriptor, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, rc)
	_ = rc.Close()
	var e *registry.Error
	if n != 1000 || !errors.As(err, &e) || !e.Temporary || !strings.Contains(err.Error(), "no byte came for 50ms") {
		t.Errorf("stall: %d bytes, %v", n, err)
	}
	r.Away()
	_, err = c.Resolve(t.Context(), p.Reference, "")
	if !errors.As(err, &e) || !e.Temporary || !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("away: %v", err)
	}
}

// TestForgedDocuments has a registry that answers a digest with other bytes.
func TestForgedDocuments(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	var config digest.Digest
	p := r.Push(t, "a/b:v1", imagetest.Image{EditManifest: func(m *ocispec.Manifest) { config = m.Config.Digest }})
	forger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"schemaVersion":2,"config":{}}`)
	}))
	defer forger.Close()
	host := strings.TrimPrefix(forger.URL, "http://")
	c := newClient(t, r, func(o *registry.Options) { o.Insecure = append(o.Insecure, host) })
	refused := func(what, ref string, manifest digest.Digest) {
		t.Helper()
		if _, err := c.Resolve(t.Context(), ref, manifest); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "do not trust this registry") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("manifest, digest of the caller", host+"/a/b:v1", p.Manifest.Digest)
	refused("manifest, digest of the reference", host+"/a/b@"+p.Manifest.Digest.String(), "")
	r.Replace("a/b", config, func(b []byte) []byte { return bytes.Replace(b, []byte("imagetest"), []byte("imageTest"), 1) })
	refused("config", p.Reference, "")
}

func TestEndlessDocument(t *testing.T) {
	t.Parallel()
	var served atomic.Int64
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			n, _ := w.Write(make([]byte, 1<<20))
			served.Add(int64(n))
		}
	}))
	defer endless.Close()
	host := strings.TrimPrefix(endless.URL, "http://")
	c := newClient(t, imagetest.New(t), func(o *registry.Options) { o.Insecure = append(o.Insecure, host) })
	if _, err := c.Resolve(t.Context(), host+"/a/b:v1", ""); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "larger than 4 MiB") {
		t.Errorf("got %v", err)
	}
	if n := served.Load(); n > 64<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

func TestWrongManifest(t *testing.T) {
	t.Parallel()
	srv := imagetest.New(t)
	p := srv.Push(t, "a/b:v1", imagetest.Image{})
	_, err := newClient(t, srv, nil).Resolve(t.Context(), p.Reference, digest.FromString("other"))
	if !errdefs.IsNotFound(err) {
		t.Errorf("absent digest: %v", err)
	}
	srv.Fail(p.Manifest.Digest.String(), imagetest.Fault{Cut: true, After: 20})
	_, err = newClient(t, srv, nil).Resolve(t.Context(), p.Reference, p.Manifest.Digest)
	var e *registry.Error
	if !errors.As(err, &e) || !e.Temporary {
		t.Errorf("cut manifest: %v", err)
	}
	_, err = newClient(t, srv, nil).Resolve(t.Context(), p.Reference, "sha256:short")
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("malformed digest: %v", err)
	}
}
