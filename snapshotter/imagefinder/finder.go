// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package imagefinder finds the images that a layer belongs to, by the layer's
// chain id, in containerd's own records: the configs in the content store and
// the registry that each manifest came from.
//
// FindImage reads what containerd stores on the host, which is not trusted: its
// answer is a hint for a puller that verifies what it pulls. ImagesOf says which
// images a container may be made from; who relies on that relies on this
// machine's containerd, as it does for starting the container.
//
// It is called while containerd waits in Prepare, where containerd holds no
// transaction, and must never be called from Commit or Remove, which containerd
// calls inside a write transaction. It must not import
// containerd's client, nor anything of coffer's.
package imagefinder

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

// Content is the part of containerd's content store that a Finder reads.
type Content interface {
	content.InfoReaderProvider
	Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error
}

// Images lists containerd's image records.
type Images interface {
	List(ctx context.Context, filters ...string) ([]images.Image, error)
}

// Options of a Finder. The zero value is ready to use.
type Options struct {
	// Registries are the host:port of registries that do not listen on the
	// default port. containerd notes where a manifest came from without the
	// port; a host of this list gets its port back.
	Registries []string
	// Timeout bounds one search. Zero means 30 seconds.
	Timeout time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

const (
	defaultTimeout = 30 * time.Second
	// maxConfig is more than any image config that containerd accepts.
	maxConfig = 8 << 20
	// maxLayers is more than an overlay mount can stack.
	maxLayers = 2048
	maxCached = 512
)

// Finder finds images. It is safe for concurrent use.
type Finder struct {
	content    Content
	images     Images
	registries map[string]string // host to host:port
	platform   platforms.Matcher
	timeout    time.Duration
	log        *slog.Logger

	mu     sync.Mutex
	chains map[digest.Digest][]digest.Digest // guarded by mu; config digest to its chain ids
	tops   map[target][]top                  // guarded by mu; what images have on top
}

// New returns a Finder over containerd's stores.
func New(store Content, records Images, o Options) *Finder {
	f := &Finder{
		content:    store,
		images:     records,
		registries: map[string]string{},
		platform:   platforms.Default(),
		timeout:    cmp.Or(o.Timeout, defaultTimeout),
		log:        o.Logger,
		chains:     map[digest.Digest][]digest.Digest{},
		tops:       map[target][]top{},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	for _, r := range o.Registries {
		f.registries[hostname(r)] = r
	}
	return f
}

// configLabel is how containerd marks a manifest's reference to its config.
const configLabel = "containerd.io/gc.ref.content.config"

// FindImage returns an image with the layer chainID, as host/repository@digest,
// and the digest of its manifest. It looks in the containerd namespace of ctx,
// at manifests whose config is there; of several the one that was written last,
// which during a pull is the image being pulled.
//
// An image that came from a file and not from a registry is FailedPrecondition;
// no image at all is NotFound.
func (f *Finder) FindImage(ctx context.Context, chainID digest.Digest) (image string, manifest digest.Digest, err error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return "", "", fmt.Errorf("find image of layer %s: %w", chainID, err)
	}
	// The namespace came in with a request; this sends it on.
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, ns), f.timeout)
	defer cancel()
	manifests, err := f.manifests(ctx)
	if err != nil {
		return "", "", fmt.Errorf("find image of layer %s: list manifests of containerd namespace %s (is containerd_address right?): %w", chainID, ns, err)
	}
	sourceless := digest.Digest("")
	for _, info := range manifests {
		if !slices.Contains(f.chainsOf(ctx, info), chainID) {
			continue
		}
		source, err := f.source(ctx, info)
		if err != nil {
			return "", "", fmt.Errorf("find image of layer %s: %w", chainID, err)
		}
		if source != "" {
			return source + "@" + info.Digest.String(), info.Digest, nil
		}
		sourceless = info.Digest
	}
	if sourceless != "" {
		return "", "", fmt.Errorf("layer %s belongs to manifest %s, which containerd did not get from a registry (imported or built here), so there is nowhere to pull it from: push it to a registry and pull it, or use another snapshotter for it: %w", chainID, sourceless, errdefs.ErrFailedPrecondition)
	}
	return "", "", fmt.Errorf("no manifest in containerd namespace %s has the layer %s: pull the image through containerd: %w", ns, chainID, errdefs.ErrNotFound)
}

// manifests returns what refers to a config, last written first.
func (f *Finder) manifests(ctx context.Context) ([]content.Info, error) {
	var found []content.Info
	err := f.content.Walk(ctx, func(info content.Info) error {
		// A store may ignore the filter.
		if info.Labels[configLabel] != "" {
			found = append(found, info)
		}
		return nil
	}, fmt.Sprintf("labels.%q", configLabel))
	slices.SortStableFunc(found, func(a, b content.Info) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	return found, err
}
