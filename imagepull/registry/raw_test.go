// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

func TestRawDocuments(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	p := s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	c := client(t, registry.Options{}, s)
	ref := s.host() + "/a/b:whatever"
	ctx := t.Context()

	body, mediaType, err := c.Manifest(ctx, ref, p.manifest.Digest)
	if err != nil || digest.FromBytes(body) != p.manifest.Digest || mediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("manifest: %d bytes %s, %v", len(body), mediaType, err)
	}
	tagged, mediaType, d, err := c.Tag(ctx, ref, "v1")
	if err != nil || !bytes.Equal(tagged, body) || d != p.manifest.Digest || mediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("tag: %s %s, %v", d, mediaType, err)
	}
	blob, err := c.Blob(ctx, ref, p.layer, p.layer.Size)
	if err != nil || !bytes.Equal(blob, p.content) {
		t.Errorf("blob: %d bytes, %v", len(blob), err)
	}
	for name, f := range map[string]struct {
		ask   func() error
		class func(error) bool
	}{
		"no such tag":      {func() error { _, _, _, err := c.Tag(ctx, ref, "v2"); return err }, errdefs.IsNotFound},
		"no tag":           {func() error { _, _, _, err := c.Tag(ctx, ref, "../v1"); return err }, errdefs.IsInvalidArgument},
		"no such manifest": {func() error { _, _, err := c.Manifest(ctx, ref, digest.FromString("x")); return err }, errdefs.IsNotFound},
		"no digest":        {func() error { _, _, err := c.Manifest(ctx, ref, "sha256:x"); return err }, errdefs.IsInvalidArgument},
		"over the limit":   {func() error { _, err := c.Blob(ctx, ref, p.layer, p.layer.Size-1); return err }, errdefs.IsInvalidArgument},
		"another size": {func() error {
			d := p.layer
			d.Size--
			_, err := c.Blob(ctx, ref, d, 1<<20)
			return err
		}, errdefs.IsDataLoss},
	} {
		if err := f.ask(); !f.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.put("a/b/manifests/"+p.manifest.Digest.String(), "", []byte("{}"), nil)
	s.put("a/b/blobs/"+p.layer.Digest.String(), "", bytes.ToUpper(p.content), nil)
	if _, _, err := c.Manifest(ctx, ref, p.manifest.Digest); !errdefs.IsDataLoss(err) {
		t.Errorf("forged manifest: %v", err)
	}
	if _, err := c.Blob(ctx, ref, p.layer, 1<<20); !errdefs.IsDataLoss(err) {
		t.Errorf("forged blob: %v", err)
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	subject := digest.FromString("subject")
	referrer := func(name, artifactType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1, ArtifactType: artifactType}
	}
	a, b, bad := referrer("a", "bundle"), referrer("b", "sbom"), referrer("c", "bundle")
	bad.Digest = "sha256:short"
	path := "a/b/referrers/" + subject.String()
	index := func(t *testing.T, s *shelf, at string, list ...ocispec.Descriptor) {
		s.index(t, "a/b", "x", list...)
		o := s.objects["a/b/manifests/x"]
		s.put(at, ocispec.MediaTypeImageIndex, o.body, nil)
	}
	for name, tc := range map[string]struct {
		put   func(t *testing.T, s *shelf)
		want  []ocispec.Descriptor // of type bundle
		class func(error) bool
	}{
		"API":            {put: func(t *testing.T, s *shelf) { index(t, s, path, a, b, bad) }, want: []ocispec.Descriptor{a}},
		"nothing":        {put: func(*testing.T, *shelf) {}},
		"empty":          {put: func(t *testing.T, s *shelf) { index(t, s, path) }},
		"another type":   {put: func(t *testing.T, s *shelf) { index(t, s, path, b) }},
		"tag":            {put: func(t *testing.T, s *shelf) { index(t, s, "a/b/manifests/sha256-"+subject.Encoded(), b, a) }, want: []ocispec.Descriptor{a}},
		"a page of text": {put: func(_ *testing.T, s *shelf) { s.put(path, "text/html", []byte("<html>"), nil) }, class: errdefs.IsInvalidArgument},
		"a manifest":     {put: func(_ *testing.T, s *shelf) { s.put(path, "", []byte(`{"mediaType":"application/x"}`), nil) }, class: errdefs.IsInvalidArgument},
		"refused":        {put: func(_ *testing.T, s *shelf) { s.setGuard(status(403)) }, class: errdefs.IsPermissionDenied},
		"ill":            {put: func(_ *testing.T, s *shelf) { s.setGuard(status(502)) }, class: errdefs.IsUnavailable},
		"no API, 405": {put: func(t *testing.T, s *shelf) {
			index(t, s, "a/b/manifests/sha256-"+subject.Encoded(), a)
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				return !strings.Contains(r.URL.Path, "/referrers/") || status(405)(w, r)
			})
		}, want: []ocispec.Descriptor{a}},
		"pages": {put: func(t *testing.T, s *shelf) {
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				q := r.URL.Query()
				d := a
				if q.Get("page") == "" {
					q.Set("page", "2")
					w.Header().Set("Link", "</v2/"+path+"?"+q.Encode()+`>; rel="next"`)
					d = b
				} else if q.Get("artifactType") != "bundle" {
					return status(404)(w, r)
				}
				fmt.Fprintf(w, `{"manifests":[{"mediaType":"x","digest":%q,"size":1,"artifactType":%q}]}`, d.Digest, d.ArtifactType)
				return false
			})
		}, want: []ocispec.Descriptor{{MediaType: "x", Digest: a.Digest, Size: 1, ArtifactType: "bundle"}}},
		"pages without end": {put: func(t *testing.T, s *shelf) {
			s.setGuard(func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Link", `<?page=1>; rel="next"`)
				fmt.Fprint(w, `{"manifests":[]}`)
				return false
			})
		}, class: errdefs.IsInvalidArgument},
		"a page of too many": {put: func(t *testing.T, s *shelf) {
			index(t, s, path, slices.Repeat([]ocispec.Descriptor{a}, 5000)...)
		}, class: errdefs.IsInvalidArgument},
		"a tag of too many": {put: func(t *testing.T, s *shelf) {
			index(t, s, "a/b/manifests/sha256-"+subject.Encoded(), slices.Repeat([]ocispec.Descriptor{a}, 5000)...)
		}, class: errdefs.IsInvalidArgument},
		"a page of nothings": {put: func(_ *testing.T, s *shelf) {
			s.put(path, "", []byte(`{"manifests":[`+strings.Repeat("{},", 1<<20)+`{}]}`), nil)
		}, class: errdefs.IsInvalidArgument},
		"a page elsewhere": {put: func(t *testing.T, s *shelf) {
			s.put(path, "", []byte(`{"manifests":[]}`), http.Header{"Link": {`<http://elsewhere.invalid/v2/` + path + `?page=1>; rel="next"`}})
		}, class: errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			tc.put(t, s)
			s.paths()
			got, err := client(t, registry.Options{}, s).Referrers(t.Context(), s.host()+"/a/b:v1", subject, "bundle")
			if tc.class != nil {
				if !tc.class(err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			if n := len(s.paths()); n > 20 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestReferrersOfMirrors looks at the registry itself for what a mirror has not.
func TestReferrersOfMirrors(t *testing.T) {
	t.Parallel()
	m1, m2, primary, p, config := mirrored(t, "", "")
	d := ocispec.Descriptor{MediaType: "x", Digest: digest.FromString("sig"), Size: 1}
	primary.index(t, "a/b", "sha256-"+p.manifest.Digest.Encoded(), d)
	m1.put("a/b/referrers/"+p.manifest.Digest.String(), "", []byte(`{"manifests":[]}`), nil)
	c := client(t, registry.Options{Config: config}, m1, m2, primary)
	got, err := c.Referrers(t.Context(), primary.host()+"/a/b:v1", p.manifest.Digest, "")
	if diff := cmp.Diff([]ocispec.Descriptor{d}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
