// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"encoding/json"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// Image says what to build; the zero value is an image without layers for this
// machine.
type Image struct {
	Layers []Layer
	Config ocispec.ImageConfig
	// Platform, empty fields of which mean linux and this architecture.
	Platform ocispec.Platform
	// Docker uses Docker's media types for manifest and config.
	Docker bool
	// EditConfig and EditManifest change the documents before they are pushed.
	EditConfig   func(*ocispec.Image)
	EditManifest func(*ocispec.Manifest)
}

// Pushed is an image as the registry has it.
type Pushed struct {
	// Reference is host/repository:tag, Repository what is between host and tag.
	Reference, Repository string
	Manifest              ocispec.Descriptor
	ConfigDigest          digest.Digest
	Config                ocispec.Image
	Layers                []Built

	tag string
}

// Chain is the chain id of the topmost layer.
func (p Pushed) Chain() digest.Digest { return p.Layers[len(p.Layers)-1].ChainID }

// Push builds an image and puts it into the registry under repository:tag.
func (r *Registry) Push(t testing.TB, name string, image Image) Pushed {
	t.Helper()
	repository, tag, ok := strings.Cut(name, ":")
	if !ok {
		t.Fatalf("imagetest: %q is not repository:tag", name)
	}
	p := Pushed{Reference: r.host + "/" + name, Repository: repository, tag: tag}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	p.Config = ocispec.Image{Config: image.Config, Platform: image.Platform, RootFS: ocispec.RootFS{Type: "layers"}}
	if p.Config.OS == "" {
		p.Config.OS = "linux"
	}
	if p.Config.Architecture == "" {
		p.Config.Architecture = runtime.GOARCH
	}
	p.Config.Author = "imagetest " + digest.FromBytes(random(t, 16)).Encoded()[:12]
	for _, l := range image.Layers {
		b := l.build(t)
		p.Config.RootFS.DiffIDs = append(p.Config.RootFS.DiffIDs, b.DiffID)
		manifest.Layers = append(manifest.Layers, b.Descriptor)
		p.Layers = append(p.Layers, b)
		r.putBlob(t, repository, b.Blob)
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), p.Config.RootFS.DiffIDs...))
	for i := range p.Layers {
		p.Layers[i].ChainID = chains[i]
		if i > 0 {
			p.Layers[i].Parent = chains[i-1]
		}
	}
	if image.EditConfig != nil {
		image.EditConfig(&p.Config)
	}
	config, err := json.Marshal(p.Config)
	must(t, err)
	r.putBlob(t, repository, config)
	p.ConfigDigest = digest.FromBytes(config)
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: p.ConfigDigest, Size: int64(len(config))}
	if image.Docker {
		manifest.MediaType, manifest.Config.MediaType = dockerManifest, dockerConfig
	}
	if image.EditManifest != nil {
		image.EditManifest(&manifest)
	}
	p.Manifest = r.putManifest(t, repository, tag, manifest.MediaType, manifest)
	p.Manifest.Platform = &p.Config.Platform
	return p
}

// PushIndex puts an index of images, pushed to the same repository before,
// under repository:tag and returns its descriptor.
func (r *Registry) PushIndex(t testing.TB, name string, docker bool, images ...Pushed) ocispec.Descriptor {
	t.Helper()
	repository, tag, _ := strings.Cut(name, ":")
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if docker {
		index.MediaType = dockerList
	}
	for _, p := range images {
		index.Manifests = append(index.Manifests, p.Manifest)
	}
	return r.putManifest(t, repository, tag, index.MediaType, index)
}

func (r *Registry) putBlob(t testing.TB, repository string, b []byte) {
	t.Helper()
	r.put(t, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b)
}

func (r *Registry) putManifest(t testing.TB, repository, tag, mediaType string, manifest any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(manifest)
	must(t, err)
	r.put(t, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, mediaType, b)
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}
