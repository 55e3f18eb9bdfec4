// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxTops is how many targets of images are remembered at least.
	maxTops = 4096
	// maxDocuments is how many manifests and indexes of one image are read.
	maxDocuments = 256
)

// top is one manifest of an image, and the chain id of its topmost layer.
type top struct{ manifest, config, chain digest.Digest }

// target is a digest that images point to. The bytes of it are the same
// everywhere, but what else is there depends on the namespace.
type target struct {
	namespace string
	digest    digest.Digest
}

// topsOf returns what a container can be made from, in the namespace of ctx, of
// an image with this target. What was found whole is remembered: it does not
// change.
func (f *Finder) topsOf(ctx context.Context, ns string, d digest.Digest) ([]top, error) {
	key := target{ns, d}
	f.mu.Lock()
	tops, known := f.tops[key]
	f.mu.Unlock()
	if known {
		return tops, nil
	}
	w := topWalk{finder: f, seen: map[digest.Digest]bool{}}
	if err := w.visit(ctx, ocispec.Descriptor{Digest: d}); err != nil {
		return nil, err
	}
	if !w.missing {
		f.mu.Lock()
		f.tops[key] = w.tops
		f.mu.Unlock()
	}
	return w.tops, nil
}

// forgetTops bounds what is remembered, where much more is than there are
// images.
func (f *Finder) forgetTops(images int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.tops) > max(maxTops, 4*images) {
		clear(f.tops)
	}
}

// topWalk goes through what an image's target leads to.
type topWalk struct {
	finder  *Finder
	seen    map[digest.Digest]bool
	tops    []top
	missing bool // something is not there, and may come
}

// visit reads a manifest or an index. Which of both it is, containerd takes from
// a media type; here either counts for what it has, which is no less.
func (w *topWalk) visit(ctx context.Context, desc ocispec.Descriptor) error {
	if w.seen[desc.Digest] {
		return nil
	}
	if len(w.seen) >= maxDocuments {
		return fmt.Errorf("more than %d manifests and indexes: remove it: %w", maxDocuments, errdefs.ErrResourceExhausted)
	}
	w.seen[desc.Digest] = true
	var doc struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if ok, err := w.read(ctx, desc, &doc); !ok {
		return err
	}
	if doc.Config != nil {
		if err := w.visitConfig(ctx, desc.Digest, *doc.Config); err != nil {
			return err
		}
	}
	for _, m := range doc.Manifests {
		if m.Platform != nil && !w.finder.platform.Match(*m.Platform) {
			continue
		}
		if err := w.visit(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (w *topWalk) visitConfig(ctx context.Context, manifest digest.Digest, desc ocispec.Descriptor) error {
	var config json.RawMessage
	if ok, err := w.read(ctx, desc, &config); !ok {
		return err
	}
	chains, err := parseChains(config)
	if errdefs.IsResourceExhausted(err) {
		return err
	}
	if err == nil && len(chains) > 0 {
		w.tops = append(w.tops, top{manifest: manifest, config: desc.Digest, chain: chains[len(chains)-1]})
	}
	return nil // what is no config of an image has no layers
}

// read decodes a blob. Where it returns false without an error, the blob is not
// there, or nothing that containerd could decode.
func (w *topWalk) read(ctx context.Context, desc ocispec.Descriptor, v any) (bool, error) {
	if desc.Digest.Validate() != nil {
		return false, nil //nolint:nilerr // containerd cannot read it either
	}
	b, err := w.finder.readBlob(ctx, desc)
	switch {
	case errdefs.IsNotFound(err):
		w.missing = true
		return false, nil
	case err != nil:
		return false, unavailable(err)
	case desc.Digest.Algorithm().FromBytes(b) != desc.Digest:
		return false, fmt.Errorf("blob %s in containerd's content store has other bytes: remove the image and pull it again: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	return json.Unmarshal(b, v) == nil, nil
}

// readBlob reads a small blob, which may stand in its descriptor as well.
func (f *Finder) readBlob(ctx context.Context, desc ocispec.Descriptor) (_ []byte, err error) {
	if len(desc.Data) > 0 && int64(len(desc.Data)) == desc.Size && desc.Digest.Algorithm().FromBytes(desc.Data) == desc.Digest {
		return desc.Data, nil
	}
	r, err := f.content.ReaderAt(ctx, ocispec.Descriptor{Digest: desc.Digest})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Size() > maxConfig {
		return nil, fmt.Errorf("blob %s has %d bytes, more than %d: %w", desc.Digest, r.Size(), maxConfig, errdefs.ErrResourceExhausted)
	}
	b := make([]byte, r.Size())
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return b, nil
}
