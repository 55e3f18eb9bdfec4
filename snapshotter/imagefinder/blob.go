// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FindBlob returns what a manifest says of the layer chainID, of the manifests
// where FindImage looks, and whether containerd has its blob. Of several the one
// that was written last counts. No manifest at all is NotFound.
func (f *Finder) FindBlob(ctx context.Context, chainID digest.Digest) (desc ocispec.Descriptor, there bool, err error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return desc, false, fmt.Errorf("find blob of layer %s: %w", chainID, err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, ns), f.timeout)
	defer cancel()
	manifests, err := f.manifests(ctx)
	if err != nil {
		return desc, false, fmt.Errorf("find blob of layer %s: list manifests of containerd namespace %s: %w", chainID, ns, err)
	}
	for _, info := range manifests {
		chains := f.chainsOf(ctx, info)
		at := slices.Index(chains, chainID)
		if at < 0 {
			continue
		}
		var m ocispec.Manifest
		b, err := f.read(ctx, info.Digest)
		if err != nil || json.Unmarshal(b, &m) != nil || len(m.Layers) != len(chains) {
			f.log.Debug("manifest passed over", "manifest", info.Digest, "err", err)
			continue
		}
		_, err = f.content.Info(ctx, m.Layers[at].Digest)
		if err != nil && !errdefs.IsNotFound(err) {
			return desc, false, fmt.Errorf("find blob of layer %s: %w", chainID, err)
		}
		return m.Layers[at], err == nil, nil
	}
	return desc, false, fmt.Errorf("no manifest in containerd namespace %s has the layer %s: %w", ns, chainID, errdefs.ErrNotFound)
}
