// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageCase is an image that is wrong, or odd, as it was published. What Push
// returns names it by its Manifest, which may be an index; its layers are those
// of the image below.
type ImageCase struct {
	Name string
	Push func(t testing.TB, r *Registry) Pushed
}

// Images is the table of them. keys encrypt the layers, if there are any.
func Images(keys ...Key) []ImageCase {
	return slices.Concat(indexes(keys), manifests(keys), configs(keys), descriptors(keys))
}

// threeLayers is an image that is right.
func threeLayers(keys []Key) Image {
	l := Layer{Random: 1000, Compression: Gzip, Keys: keys}
	return Image{Layers: []Layer{l, l, l}}
}

// published is a case of an image of three layers after edit.
func published(keys []Key, name string, edit func(*Image)) ImageCase {
	return ImageCase{name, func(t testing.TB, r *Registry) Pushed {
		t.Helper()
		image := threeLayers(keys)
		edit(&image)
		return r.Push(t, "a/b:v1", image)
	}}
}

// indexed is a case of an index over an image that is right; entries makes the
// index of the image's descriptor.
func indexed(keys []Key, name string, entries func(r *Registry, image ocispec.Descriptor) []ocispec.Descriptor) ImageCase {
	return ImageCase{name, func(t testing.TB, r *Registry) Pushed {
		t.Helper()
		p := r.Push(t, "a/b:v1", threeLayers(keys))
		p.Manifest = r.serveIndex(t, entries(r, p.Manifest))
		return p
	}}
}

// serveIndex serves an index without the checks of a push.
func (r *Registry) serveIndex(t testing.TB, entries []ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	must(t, err)
	d := digest.FromBytes(b)
	r.Serve(d.String(), ocispec.MediaTypeImageIndex, b)
	r.Serve("v1", ocispec.MediaTypeImageIndex, b)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d, Size: int64(len(b))}
}

func indexes(keys []Key) []ImageCase {
	many := func(n int) func(*Registry, ocispec.Descriptor) []ocispec.Descriptor {
		return func(_ *Registry, image ocispec.Descriptor) []ocispec.Descriptor {
			list := make([]ocispec.Descriptor, n)
			for i := range list {
				list[i] = image
				list[i].Platform = &ocispec.Platform{OS: "linux", Architecture: fmt.Sprintf("cpu%d", i)}
			}
			return append(list, image)
		}
	}
	// The index names a digest under which the registry serves an index with
	// the same entry again.
	cyclic := func(r *Registry, image ocispec.Descriptor) []ocispec.Descriptor {
		next := image
		next.MediaType, next.Digest = ocispec.MediaTypeImageIndex, digest.FromString("once more")
		var b []byte
		for next.Size = 0; int64(len(b)) != next.Size || next.Size == 0; next.Size = int64(len(b)) {
			b, _ = json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{next}})
		}
		r.Serve(next.Digest.String(), ocispec.MediaTypeImageIndex, b)
		return []ocispec.Descriptor{next}
	}
	edit := func(name string, f func(*ocispec.Descriptor)) ImageCase {
		return indexed(keys, name, func(_ *Registry, image ocispec.Descriptor) []ocispec.Descriptor {
			f(&image)
			return []ocispec.Descriptor{image}
		})
	}
	return []ImageCase{
		edit("index", func(*ocispec.Descriptor) {}),
		indexed(keys, "index of a thousand entries", many(1000)),
		indexed(keys, "index of a hundred thousand entries", many(100_000)),
		indexed(keys, "empty index", func(*Registry, ocispec.Descriptor) []ocispec.Descriptor { return nil }),
		indexed(keys, "cyclic index", cyclic),
		{"index nested 100 times", func(t testing.TB, r *Registry) Pushed {
			t.Helper()
			p := r.Push(t, "a/b:v1", threeLayers(keys))
			for range 100 {
				platform := p.Manifest.Platform
				p.Manifest = r.serveIndex(t, []ocispec.Descriptor{p.Manifest})
				p.Manifest.Platform = platform
			}
			return p
		}},
		edit("index without this platform", func(d *ocispec.Descriptor) {
			d.Platform = &ocispec.Platform{OS: "plan9", Architecture: "vax"}
		}),
		edit("index with another size", func(d *ocispec.Descriptor) { d.Size++ }),
		edit("index with an impossible size", func(d *ocispec.Descriptor) { d.Size = -1 }),
		edit("index with another digest", func(d *ocispec.Descriptor) { d.Digest = digest.FromString("absent") }),
		edit("index with a path for a digest", func(d *ocispec.Descriptor) { d.Digest = "sha256:../../../etc/passwd" }),
	}
}

func manifests(keys []Key) []ImageCase {
	edit := func(name string, f func(*ocispec.Manifest)) ImageCase {
		return published(keys, name, func(i *Image) { i.EditManifest = f })
	}
	return []ImageCase{
		edit("manifest of another type", func(m *ocispec.Manifest) { m.MediaType = "application/vnd.example+json" }),
		edit("manifest that says it is an index", func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }),
		edit("schema 1", func(m *ocispec.Manifest) { m.SchemaVersion = 1 }),
		edit("more layers than diff ids", func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }),
		edit("no layers, but diff ids", func(m *ocispec.Manifest) { m.Layers = nil }),
		edit("five thousand layers", func(m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers[:1], 5000) }),
		edit("layers in another order", func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }),
	}
}

func configs(keys []Key) []ImageCase {
	descriptor := func(name string, f func(*ocispec.Descriptor)) ImageCase {
		return published(keys, name, func(i *Image) { i.EditManifest = func(m *ocispec.Manifest) { f(&m.Config) } })
	}
	edit := func(name string, f func(*ocispec.Image)) ImageCase {
		return published(keys, name, func(i *Image) { i.EditConfig = f })
	}
	return []ImageCase{
		descriptor("config of another type", func(d *ocispec.Descriptor) { d.MediaType = "application/vnd.example.config" }),
		descriptor("config with another size", func(d *ocispec.Descriptor) { d.Size-- }),
		descriptor("config of an impossible size", func(d *ocispec.Descriptor) { d.Size = -5 }),
		descriptor("config without a digest", func(d *ocispec.Descriptor) { d.Digest = "" }),
		descriptor("no such config", func(d *ocispec.Descriptor) { d.Digest = digest.FromString("absent") }),
		edit("config for another platform", func(c *ocispec.Image) { c.Architecture = "vax" }),
		edit("diff id that is none", func(c *ocispec.Image) { c.RootFS.DiffIDs[1] = "sha256:0" }),
		edit("diff id of another hash", func(c *ocispec.Image) {
			c.RootFS.DiffIDs[1] = digest.Digest("sha512:" + strings.Repeat("0", 128))
		}),
	}
}

// descriptors are wrong in what the manifest says of the middle layer.
func descriptors(keys []Key) []ImageCase {
	edit := func(name string, f func(*ocispec.Descriptor)) ImageCase {
		return published(keys, name, func(i *Image) { i.Layers[1].Edit = f })
	}
	return []ImageCase{
		edit("layer said to be larger", func(d *ocispec.Descriptor) { d.Size++ }),
		edit("layer said to be smaller", func(d *ocispec.Descriptor) { d.Size-- }),
		edit("layer said to be empty", func(d *ocispec.Descriptor) { d.Size = 0 }),
		edit("layer of an impossible size", func(d *ocispec.Descriptor) { d.Size = -1 }),
		edit("layer larger than any disk", func(d *ocispec.Descriptor) { d.Size = 1 << 62 }),
		edit("layer with another digest", func(d *ocispec.Descriptor) { d.Digest = digest.FromString("absent") }),
		edit("layer without a digest", func(d *ocispec.Descriptor) { d.Digest = "" }),
		edit("layer with a path for a digest", func(d *ocispec.Descriptor) { d.Digest = "sha256:../../../etc/passwd" }),
		edit("layer of another hash", func(d *ocispec.Descriptor) { d.Digest = digest.Digest("sha512:" + strings.Repeat("0", 128)) }),
		edit("layer of another type", func(d *ocispec.Descriptor) { d.MediaType = "application/vnd.example.layer" }),
		edit("layer without a type", func(d *ocispec.Descriptor) { d.MediaType = "" }),
		edit("layer of a type without end", func(d *ocispec.Descriptor) { d.MediaType = strings.Repeat("x", 100_000) }),
		edit("gzip that is said to be zstd", func(d *ocispec.Descriptor) { d.MediaType = strings.Replace(d.MediaType, "gzip", "zstd", 1) }),
		edit("gzip that is said to be plain", func(d *ocispec.Descriptor) { d.MediaType = strings.Replace(d.MediaType, "+gzip", "", 1) }),
		edit("layer that is to be had elsewhere", func(d *ocispec.Descriptor) { d.URLs = []string{"http://127.0.0.1:1/layer", "file:///etc/passwd"} }),
	}
}
