// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

func platform(t *testing.T, s string) ocispec.Platform {
	t.Helper()
	p, err := registry.ParsePlatform(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPlatforms chooses from an index for each kind of machine.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	names := []string{"linux/amd64", "linux/amd64/v3", "linux/arm64", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "windows/amd64"}
	byName := make(map[digest.Digest]string)
	var all []ocispec.Descriptor
	for _, name := range names {
		m := s.image(t, "a/b", "", name, platform(t, name)).manifest
		byName[m.Digest] = name
		all = append(all, m)
	}
	attestation := all[0]
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	s.index(t, "a/b", "all", append(all, attestation)...)
	s.index(t, "a/b", "old", all[3], all[4])
	s.index(t, "a/b", "attestations", attestation, attestation)
	for _, tc := range [][3]string{
		{"all", "linux/amd64", "linux/amd64"},
		{"all", "linux/amd64/v2", "linux/amd64"},
		{"all", "linux/amd64/v4", "linux/amd64/v3"},
		{"all", "linux/x86_64", "linux/amd64"},
		{"all", "linux/arm64", "linux/arm64"},
		{"all", "linux/arm64/v8", "linux/arm64"},
		{"all", "linux/aarch64/v9", "linux/arm64"},
		{"all", "linux/arm", "linux/arm/v7"},
		{"all", "linux/arm/v8", "linux/arm/v7"},
		{"all", "linux/arm/v6", "linux/arm/v6"},
		{"all", "linux/armel", "linux/arm/v6"},
		{"all", "linux/armhf", "linux/arm/v7"},
		{"old", "linux/arm/v7", "linux/arm/v6"},
		{"all", "linux/riscv64", "no image for linux/riscv64, only for linux/amd64, linux/amd64/v3, linux/arm64,"},
		{"old", "linux/amd64", "only for linux/arm/v5, linux/arm/v6: push"},
		{"attestations", "linux/amd64", "no image, only other artifacts"},
	} {
		c := client(t, registry.Options{Platform: platform(t, tc[1])}, s)
		image, err := c.Resolve(t.Context(), s.host()+"/a/b:"+tc[0], "")
		if err != nil {
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), tc[2]) {
				t.Errorf("%s: %v", tc, err)
			}
			continue
		}
		if got := byName[image.Manifest]; got != tc[2] {
			t.Errorf("%s: chose %q", tc, got)
		}
	}
	for _, bad := range []string{"", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"} {
		if _, err := registry.ParsePlatform(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestNested reads indexes in indexes, and knows the one at the top.
func TestNested(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd := platform(t, "linux/amd64")
	p := s.image(t, "a/b", "", "x", amd).manifest
	other := s.image(t, "a/b", "", "y", platform(t, "linux/s390x")).manifest
	inner := s.index(t, "a/b", "", other, p)
	wrong := s.index(t, "a/b", "", other)
	outer := s.index(t, "a/b", "nested", other, wrong, inner)
	deep := inner
	for range 3 {
		deep = s.index(t, "a/b", "deep", deep)
	}
	s.index(t, "a/b", "deeper", deep)
	s.index(t, "a/b", "twice", wrong, wrong)
	s.index(t, "a/b", "nothing", wrong)
	c := client(t, registry.Options{Platform: amd}, s)
	for tag, top := range map[string]digest.Digest{"nested": outer.Digest, "deep": deep.Digest} {
		image, err := c.Resolve(t.Context(), s.host()+"/a/b:"+tag, "")
		if err != nil || image.Manifest != p.Digest || image.Index != top {
			t.Errorf("%s: %s in %s, %v", tag, image.Manifest, image.Index, err)
		}
	}
	for tag, text := range map[string]string{"deeper": "nested more than 4 deep", "twice": "twice in another", "nothing": "only for linux/s390x"} {
		if _, err := c.Resolve(t.Context(), s.host()+"/a/b:"+tag, ""); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", tag, err)
		}
	}
	// An index of itself cannot have the digest it is named by.
	self := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`,
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageIndex, outer.Digest))
	s.put("a/b/manifests/self", ocispec.MediaTypeImageIndex, self, nil)
	s.put("a/b/manifests/"+outer.Digest.String(), ocispec.MediaTypeImageIndex, self, nil)
	if _, err := c.Resolve(t.Context(), s.host()+"/a/b:self", ""); !errdefs.IsDataLoss(err) {
		t.Errorf("an index of itself: %v", err)
	}
}

// TestThousandEntries takes an index as large as it may be.
func TestThousandEntries(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd := platform(t, "linux/amd64")
	p := s.image(t, "a/b", "", "x", amd).manifest
	var all []ocispec.Descriptor
	for i := range 5000 {
		all = append(all, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 100,
			Platform: &ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("arch", i)},
		})
	}
	s.index(t, "a/b", "v1", append(all, p)...)
	s.index(t, "a/b", "none", all...)
	c := client(t, registry.Options{Platform: amd}, s)
	if image, err := c.Resolve(t.Context(), s.host()+"/a/b:v1", ""); err != nil || image.Manifest != p.Digest {
		t.Errorf("%s, %v", image.Manifest, err)
	}
	if _, err := c.Resolve(t.Context(), s.host()+"/a/b:none", ""); err == nil || len(err.Error()) > 500 {
		t.Errorf("none: %v", err)
	}
	var nested []ocispec.Descriptor
	for i := range 100 {
		nested = append(nested, s.index(t, "a/b", "", all[i]))
	}
	s.index(t, "a/b", "many", nested...)
	s.paths()
	if _, err := c.Resolve(t.Context(), s.host()+"/a/b:many", ""); !errdefs.IsInvalidArgument(err) || len(s.paths()) > 40 {
		t.Errorf("many: %v", err)
	}
}

// TestTagAndDigest has the digest decide, and a manifest that the caller wants
// be one that the name leads to.
func TestTagAndDigest(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd := platform(t, "linux/amd64")
	p, q := s.image(t, "a/b", "", "x", amd).manifest, s.image(t, "a/b", "moved", "y", amd).manifest
	index := s.index(t, "a/b", "v1", p)
	outer := s.index(t, "a/b", "outer", index)
	name := s.host() + "/a/b"
	for _, tc := range []struct {
		ref              string
		manifest         digest.Digest
		found, top, find digest.Digest // find: the index with FindIndex
	}{
		{name + ":moved@" + p.Digest.String(), "", p.Digest, "", ""},
		{name + ":v1", p.Digest, p.Digest, "", index.Digest},
		{name + ":moved", p.Digest, p.Digest, "", ""},
		{name + ":gone", p.Digest, p.Digest, "", ""},
		{name + ":moved", index.Digest, p.Digest, index.Digest, index.Digest},
		{name + "@" + index.Digest.String(), p.Digest, p.Digest, index.Digest, index.Digest},
		{name + "@" + index.Digest.String(), index.Digest, p.Digest, index.Digest, index.Digest},
		{name + "@" + outer.Digest.String(), p.Digest, p.Digest, outer.Digest, outer.Digest},
		{name + "@" + outer.Digest.String(), index.Digest, p.Digest, outer.Digest, outer.Digest},
		{name + "@" + index.Digest.String(), q.Digest, "", "", ""},
		{name + "@" + p.Digest.String(), q.Digest, "", "", ""},
		{name + "@" + p.Digest.String(), index.Digest, "", "", ""},
	} {
		for _, find := range []bool{false, true} {
			c := client(t, registry.Options{Platform: amd, FindIndex: find}, s)
			image, err := c.Resolve(t.Context(), tc.ref, tc.manifest)
			if tc.found == "" {
				if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "not what the digest of this name leads to") {
					t.Errorf("%s, %s: %v", tc.ref, tc.manifest, err)
				}
				continue
			}
			top := tc.top
			if find {
				top = tc.find
			}
			if err != nil || image.Manifest != tc.found || image.Index != top || image.Name != tc.ref {
				t.Errorf("%s, %s: %+v, %v", tc.ref, tc.manifest, image, err)
			}
		}
	}
}

// TestNoImages names things that are no image, each with its own text.
func TestNoImages(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	config := s.blob("a/b", ocispec.MediaTypeImageConfig, []byte(`{}`))
	big := config
	big.Size = 100 << 20
	manifest := func(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
		return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
	}
	schema1 := "application/vnd.docker.distribution.manifest.v1+prettyjws"
	for name, tc := range map[string]struct {
		mediaType string
		document  any
		class     func(error) bool
		text      string
	}{
		"schema 1":       {schema1, map[string]any{"schemaVersion": 1}, errdefs.IsNotImplemented, "docker schema 1: push the image again"},
		"helm chart":     {ocispec.MediaTypeImageManifest, manifest(ocispec.Descriptor{MediaType: "application/vnd.cncf.helm.config.v1+json", Digest: config.Digest, Size: config.Size}), errdefs.IsInvalidArgument, "helm"},
		"unknown type":   {"application/vnd.example", map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.example"}, errdefs.IsNotImplemented, "is not an image"},
		"a web page":     {"text/html", "<html>", errdefs.IsInvalidArgument, "not JSON of the OCI form"},
		"huge config":    {ocispec.MediaTypeImageManifest, manifest(big), errdefs.IsInvalidArgument, "larger than 4 MiB"},
		"huge manifest":  {ocispec.MediaTypeImageManifest, strings.Repeat("x", 5<<20), errdefs.IsInvalidArgument, "larger than 4 MiB"},
		"empty index":    {ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}, errdefs.IsNotFound, "no image"},
		"index in image": {"", map[string]any{"schemaVersion": 2, "config": config, "manifests": []ocispec.Descriptor{config}}, errdefs.IsInvalidArgument, "also an index"},
		"sha512 layer": {ocispec.MediaTypeImageManifest, manifest(config, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.SHA512.FromString("x"), Size: 1}),
			errdefs.IsInvalidArgument, "only sha256 is supported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tag := strings.ReplaceAll(name, " ", "-")
			s.manifest(t, "a/b", tag, tc.mediaType, tc.document)
			_, err := client(t, registry.Options{}, s).Resolve(t.Context(), s.host()+"/a/b:"+tag, "")
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), s.host()) {
				t.Errorf("got %v", err)
			}
		})
	}
}
