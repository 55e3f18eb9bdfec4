// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, equal in form to the OCI ones.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1"
)

const maxLayers = 1024

// Image is one platform's image, checked against its manifest digest.
type Image struct {
	// Name is what was asked for, in full: the reference as the caller gave it
	// or, where that has no registry, what its short name was found to mean. It
	// never is a mirror's. It is what an image policy must be asked about.
	Name string
	// Reference is the image by digest, in the repository of Name: what Fetch
	// takes.
	Reference string
	// Manifest is the platform's manifest, also where an index was resolved.
	Manifest digest.Digest
	// Index is the index it was chosen from, that which the reference names
	// where indexes are nested; empty without one.
	Index  digest.Digest
	Config ocispec.Image
	// Layers from the bottom up.
	Layers []Layer
}

// Layer is one layer of an image. ChainID names it with all its parents;
// Parent is the ChainID below it, empty at the bottom.
type Layer struct {
	ocispec.Descriptor
	DiffID, ChainID, Parent digest.Digest
}

// Find returns the index of the layer with this chain id, -1 if none has it.
func (i Image) Find(chainID digest.Digest) int {
	for n, l := range i.Layers {
		if l.ChainID == chainID {
			return n
		}
	}
	return -1
}

// document is what manifest and index have together: enough to tell them apart.
type document struct {
	SchemaVersion int                      `json:"schemaVersion"`
	MediaType     string                   `json:"mediaType"`
	Config        *ocispec.Descriptor      `json:"config"`
	Layers        list[ocispec.Descriptor] `json:"layers"`
	Manifests     list[ocispec.Descriptor] `json:"manifests"`
}

// parseDocument reads a manifest or an index. The body's media type decides;
// contentType (of the HTTP answer, unauthenticated) only where it has none.
// Errors are InvalidArgument or NotImplemented.
func parseDocument(body []byte, contentType string) (doc document, index bool, err error) {
	if err := json.Unmarshal(body, &doc); errors.Is(err, errTooMany) {
		return doc, false, fmt.Errorf("manifest has more than %d layers or entries: %w", maxEntries, errdefs.ErrInvalidArgument)
	} else if err != nil {
		return doc, false, fmt.Errorf("manifest is not JSON of the OCI form: %w", errdefs.ErrInvalidArgument)
	}
	mediaType := doc.MediaType
	if mediaType == "" {
		mediaType, _, _ = strings.Cut(contentType, ";")
	}
	if doc.Config != nil && len(doc.Manifests) > 0 {
		return doc, false, fmt.Errorf("manifest is also an index: %w", errdefs.ErrInvalidArgument)
	}
	switch {
	case strings.HasPrefix(mediaType, dockerSchema1), doc.SchemaVersion == 1:
		return doc, false, fmt.Errorf("manifest is of docker schema 1: push the image again with a current tool: %w", errdefs.ErrNotImplemented)
	case mediaType == ocispec.MediaTypeImageIndex, mediaType == dockerManifestList:
		return doc, true, nil
	case mediaType == ocispec.MediaTypeImageManifest, mediaType == dockerManifest:
		return doc, false, nil
	case doc.MediaType != "":
		return doc, false, fmt.Errorf("manifest type %q is not an image: %w", clip(doc.MediaType, 100), errdefs.ErrNotImplemented)
	}
	return doc, len(doc.Manifests) > 0, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return fmt.Errorf("manifest: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if d.Size < 0 {
		return fmt.Errorf("manifest: %s has size %d: %w", d.Digest, d.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkManifest accepts an image manifest whose every descriptor is usable.
func checkManifest(doc document) error {
	if doc.Config == nil {
		return fmt.Errorf("manifest has no config: not an image: %w", errdefs.ErrInvalidArgument)
	}
	if mt := doc.Config.MediaType; mt != ocispec.MediaTypeImageConfig && mt != dockerConfig {
		return fmt.Errorf("config type %q is not that of an image: %w", clip(mt, 100), errdefs.ErrInvalidArgument)
	}
	if len(doc.Layers) > maxLayers {
		return fmt.Errorf("manifest has %d layers, more than %d: %w", len(doc.Layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	for _, d := range append([]ocispec.Descriptor{*doc.Config}, doc.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return err
		}
	}
	return nil
}

// parseConfig reads an image config and pairs its diff ids with the layers.
func parseConfig(body []byte, layers []ocispec.Descriptor, want ocispec.Platform) (ocispec.Image, []Layer, error) {
	var read struct {
		ocispec.Image
		History list[ocispec.History] `json:"history"` // in place of Image's
	}
	err := json.Unmarshal(body, &read)
	config := read.Image
	config.History = read.History
	if errors.Is(err, errTooMany) {
		return config, nil, fmt.Errorf("config has more than %d entries of history: %w", maxEntries, errdefs.ErrInvalidArgument)
	} else if err != nil {
		return config, nil, fmt.Errorf("config is not JSON of the OCI form: %w", errdefs.ErrInvalidArgument)
	}
	if match(config.Platform, want) == 0 && (config.OS != "" || config.Architecture != "") {
		return config, nil, fmt.Errorf("image is for %s, wanted is %s: %w",
			clip(platformName(config.Platform), 100), platformName(want), errdefs.ErrInvalidArgument)
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(layers) {
		return config, nil, fmt.Errorf("manifest has %d layers, config has %d diff ids: push the image again: %w", len(layers), len(ids), errdefs.ErrInvalidArgument)
	}
	for _, id := range ids {
		if err := checkDigest(id); err != nil {
			return config, nil, fmt.Errorf("config: diff id: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), ids...))
	out := make([]Layer, len(layers))
	for i, d := range layers {
		out[i] = Layer{Descriptor: d, DiffID: ids[i], ChainID: chains[i]}
		if i > 0 {
			out[i].Parent = chains[i-1]
		}
	}
	return config, out, nil
}
