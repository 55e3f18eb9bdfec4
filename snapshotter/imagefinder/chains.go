// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// chainsOf returns the chain ids of a manifest's layers, none if its config is
// not there yet or is no image config.
func (f *Finder) chainsOf(ctx context.Context, manifest content.Info) []digest.Digest {
	config, err := digest.Parse(manifest.Labels[configLabel])
	if err != nil {
		return nil
	}
	f.mu.Lock()
	chains, ok := f.chains[config]
	f.mu.Unlock()
	if ok {
		return chains
	}
	chains, err = f.readChains(ctx, config)
	if err != nil {
		f.log.Debug("manifest passed over", "manifest", manifest.Digest, "err", err)
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.chains) >= maxCached {
		clear(f.chains)
	}
	f.chains[config] = chains
	return chains
}

func (f *Finder) readChains(ctx context.Context, config digest.Digest) ([]digest.Digest, error) {
	b, err := f.read(ctx, config)
	if err != nil {
		return nil, err
	}
	return parseChains(b)
}

// read reads a small blob.
func (f *Finder) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	return f.readBlob(ctx, ocispec.Descriptor{Digest: d})
}

// parseChains returns the chain ids that an image config implies. Other JSON
// objects imply none.
func parseChains(config []byte) ([]digest.Digest, error) {
	var image struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, fmt.Errorf("parse config: %w", err)
	}
	chains := image.RootFS.DiffIDs
	if len(chains) > maxLayers {
		return nil, fmt.Errorf("parse config: %d layers, more than %d: %w", len(chains), maxLayers, errdefs.ErrResourceExhausted)
	}
	for _, d := range chains {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("parse config: diff id %q: %w", d, err)
		}
	}
	return identity.ChainIDs(chains), nil
}
