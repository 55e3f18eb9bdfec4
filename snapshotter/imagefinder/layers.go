// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FindLayers returns, for each layer from the lowest of an image up to the one
// with chainID, the labels with which containerd prepares it: the chain id as
// containerd.io/snapshot.ref, and the annotations of the layer that become labels.
// It looks where FindImage does; an image whose topmost layer that is comes
// before one that has more on top. Imported images count too.
func (f *Finder) FindLayers(ctx context.Context, chainID digest.Digest) ([]map[string]string, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, fmt.Errorf("find layers below %s: %w", chainID, err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, ns), f.timeout)
	defer cancel()
	manifests, err := f.manifests(ctx)
	if err != nil {
		return nil, fmt.Errorf("find layers below %s: list manifests of containerd namespace %s (is containerd_address right?): %w", chainID, ns, err)
	}
	var found []map[string]string
	for _, info := range manifests {
		chains := f.chainsOf(ctx, info)
		at := slices.Index(chains, chainID)
		if at < 0 {
			continue
		}
		top := at == len(chains)-1
		if found == nil || top {
			found = f.layerLabels(ctx, info, chains)[:at+1]
		}
		if top {
			break
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no manifest in containerd namespace %s has the layer %s: pull the image through containerd: %w", ns, chainID, errdefs.ErrNotFound)
	}
	return found, nil
}

// layerLabels are the labels of a manifest's layers, whose chain ids are chains.
// A manifest that cannot be read has none but those.
func (f *Finder) layerLabels(ctx context.Context, manifest content.Info, chains []digest.Digest) []map[string]string {
	var m ocispec.Manifest
	b, err := f.read(ctx, manifest.Digest)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		f.log.Debug("annotations passed over", "manifest", manifest.Digest, "err", err)
	}
	all := make([]map[string]string, len(chains))
	for i, chain := range chains {
		all[i] = map[string]string{}
		if len(m.Layers) == len(chains) && len(m.Layers[i].Annotations) > 0 {
			all[i] = snapshots.FilterInheritedLabels(m.Layers[i].Annotations)
			delete(all[i], snapshots.LabelSnapshotUIDMapping)
			delete(all[i], snapshots.LabelSnapshotGIDMapping)
		}
		all[i][snapshots.LabelSnapshotRef] = chain.String()
	}
	return all
}
