// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

const (
	maxManifest = 4 << 20  // bytes of a manifest or index, as registries limit them
	maxConfig   = 32 << 20 // bytes of an image configuration
	maxDepth    = 4        // indexes within indexes
	keysPrefix  = "org.opencontainers.image.enc.keys."

	// referenceType marks what build tools attach to an image in its index.
	referenceType = "vnd.docker.reference.type"
)

// source is where an image is read. What fetch returns is not verified yet.
type source interface {
	root(ctx context.Context) (ocispec.Descriptor, []byte, error)
	fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// node is a manifest or an index of the source image.
type node struct {
	desc     ocispec.Descriptor
	manifest *ocispec.Manifest // nil for an index
	index    *ocispec.Index    // nil for a manifest
	children []*node
}

// plan is what there is to do, found out before anything is written.
type plan struct {
	root    *node
	layers  []ocispec.Descriptor // each blob once, as its first manifest names it
	configs []ocispec.Descriptor
	dropped []ocispec.Descriptor
	images  int
}

// newPlan reads every manifest and checks that all layers can be encrypted.
func newPlan(ctx context.Context, from source, platform *ocispec.Platform) (*plan, error) {
	desc, data, err := from.root(ctx)
	if err != nil {
		return nil, err
	}
	p := &plan{}
	if p.root, err = p.load(ctx, from, desc, data, 0); err != nil {
		return nil, err
	}
	if platform != nil {
		if p.root, err = selectPlatform(ctx, from, p.root, platform); err != nil {
			return nil, err
		}
		p.dropped = nil
	}
	if err := p.collect(p.root); err != nil {
		return nil, err
	}
	if p.images == 0 {
		return nil, invalid("index %s holds no image", desc.Digest)
	}
	return p, nil
}

func (p *plan) load(ctx context.Context, from source, desc ocispec.Descriptor, data []byte, depth int) (*node, error) {
	n := &node{desc: desc}
	switch {
	case depth > maxDepth:
		return nil, invalid("index %s: more than %d indexes within each other", desc.Digest, maxDepth)
	case isManifest(desc.MediaType):
		n.manifest = &ocispec.Manifest{}
		if err := json.Unmarshal(data, n.manifest); err != nil {
			return nil, invalid("manifest %s: %w", desc.Digest, err)
		}
		return n, nil
	case !isIndex(desc.MediaType):
		return nil, unsupported("%s has media type %q, which is no image manifest and no index", desc.Digest, desc.MediaType)
	}
	n.index = &ocispec.Index{}
	if err := json.Unmarshal(data, n.index); err != nil {
		return nil, invalid("index %s: %w", desc.Digest, err)
	}
	for _, entry := range n.index.Manifests {
		if entry.Annotations[referenceType] != "" {
			p.dropped = append(p.dropped, entry)
			continue
		}
		data, err := readManifest(ctx, from, entry)
		if err != nil {
			return nil, err
		}
		child, err := p.load(ctx, from, entry, data, depth+1)
		if err != nil {
			return nil, err
		}
		n.children = append(n.children, child)
	}
	return n, nil
}

// selectPlatform returns the manifest of one platform.
func selectPlatform(ctx context.Context, from source, root *node, want *ocispec.Platform) (*node, error) {
	var found *node
	var have []string
	var walk func(n *node) error
	walk = func(n *node) error {
		for _, child := range n.children {
			if err := walk(child); err != nil {
				return err
			}
		}
		if n.manifest == nil {
			return nil
		}
		if n.desc.Platform == nil {
			p, err := configPlatform(ctx, from, n.manifest.Config)
			if err != nil {
				return err
			}
			n.desc.Platform = p
		}
		have = append(have, formatPlatform(n.desc.Platform))
		if found == nil && samePlatform(want, n.desc.Platform) {
			found = n
		}
		return nil
	}
	if err := walk(root); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, classed{fmt.Errorf("the image has no platform %s: it has %s", formatPlatform(want), strings.Join(have, ", ")), errdefs.ErrNotFound}
	}
	return found, nil
}

func configPlatform(ctx context.Context, from source, config ocispec.Descriptor) (*ocispec.Platform, error) {
	if config.Size > maxConfig {
		return nil, tooLarge(config.Digest.String(), config)
	}
	data, err := readBlob(ctx, from, config)
	if err != nil {
		return nil, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, invalid("image configuration %s: %w", config.Digest, err)
	}
	return &p, nil
}

// collect lists configurations and distinct layers below n.
func (p *plan) collect(n *node) error {
	for _, child := range n.children {
		if err := p.collect(child); err != nil {
			return err
		}
	}
	if n.manifest == nil {
		return nil
	}
	p.images++
	if n.manifest.Config.Size > maxConfig {
		return tooLarge(n.manifest.Config.Digest.String(), n.manifest.Config)
	}
	p.configs = appendOnce(p.configs, n.manifest.Config)
	for _, layer := range n.manifest.Layers {
		if err := checkLayer(layer); err != nil {
			return err
		}
		p.layers = appendOnce(p.layers, layer)
	}
	return nil
}

func appendOnce(list []ocispec.Descriptor, desc ocispec.Descriptor) []ocispec.Descriptor {
	if slices.ContainsFunc(list, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest && d.Size == desc.Size }) {
		return list
	}
	return append(list, desc)
}

func checkLayer(layer ocispec.Descriptor) error {
	if layercrypt.IsEncrypted(layer.MediaType) || hasKeys(layer) {
		return classed{fmt.Errorf("layer %s is encrypted already: start from the plain image", layer.Digest), errdefs.ErrFailedPrecondition}
	}
	if _, ok := encryptedMediaType(layer.MediaType); !ok {
		return unsupported("layer %s has media type %q: only image layers (tar, gzip, zstd) can be encrypted", layer.Digest, layer.MediaType)
	}
	if err := layer.Digest.Validate(); err != nil || layer.Size < 0 {
		return invalid("layer %q (%d bytes): the manifest names no valid digest and size", layer.Digest, layer.Size)
	}
	return nil
}

func hasKeys(layer ocispec.Descriptor) bool {
	for key := range layer.Annotations {
		if strings.HasPrefix(key, keysPrefix) {
			return true
		}
	}
	return false
}

func unsupported(format string, args ...any) error {
	return classed{fmt.Errorf(format, args...), errdefs.ErrNotImplemented}
}

func tooLarge(what string, desc ocispec.Descriptor) error {
	return invalid("%s: %d bytes are too many for %s", what, desc.Size, desc.MediaType)
}

// damaged classes the errors of a verifying read; others stay as they are.
func damaged(desc ocispec.Descriptor, err error) error {
	switch {
	case errdefs.IsUnavailable(err):
		return err
	case errors.Is(err, content.ErrMismatchedDigest):
		return classed{fmt.Errorf("blob %s: its bytes have another digest: the source is damaged", desc.Digest), errdefs.ErrDataLoss}
	case errors.Is(err, content.ErrTrailingData), errors.Is(err, io.ErrUnexpectedEOF):
		return classed{fmt.Errorf("blob %s: it is not %d bytes long: the source is damaged", desc.Digest, desc.Size), errdefs.ErrDataLoss}
	}
	return fmt.Errorf("read blob %s: %w", desc.Digest, err)
}
