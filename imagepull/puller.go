// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/bundle"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// Resolver finds an image: by manifest digest, or by ref's own digest or tag
// where that is empty. What it returns has been checked against the digest.
type Resolver interface {
	Resolve(ctx context.Context, ref string, manifest digest.Digest) (registry.Image, error)
}

// Fetcher opens a blob of an image at an offset. One attempt; the puller
// retries, and verifies what it reads.
type Fetcher interface {
	Fetch(ctx context.Context, ref string, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error)
}

// Registry is where images come from; *registry.Client is one.
type Registry interface {
	Resolver
	Fetcher
}

// KeyUnwrapper gets layer keys: packet is the JSON of an annotation packet, the
// result the JSON of the layer's private options, which the puller clears.
type KeyUnwrapper interface {
	UnwrapKey(ctx context.Context, packet []byte) ([]byte, error)
}

// Puller pulls layers and images. It is safe for concurrent use; Close it
// before its store.
type Puller struct {
	registry  Registry
	keys      KeyUnwrapper
	store     *store.Store
	tar       *unpack.Tar
	bundler   *bundle.Bundler
	opts      Options
	downloads *places
	unpacks   *places
	kit       kit
	feed      progress.Feed
	verdicts  verdicts

	mu        sync.Mutex
	closed    bool                       // guarded by mu, as are those below
	pulls     map[pullKey]*pull          // running pulls of images
	flights   map[digest.Digest]*flight  // layers on their way, by chain id
	contents  map[store.Content]*content // blobs on their way
	originals map[store.Content]original // committed layers, by what they have
	admitted  map[pullKey]admission      // verdicts of late
	bundles   map[string]*mounted        // by path
	measured  map[pullEvent]*measurement // of images whose layers were handed out
}

// NewPuller makes a puller that stores layers in s. keys may be nil where only
// plain images are pulled. It starts nothing.
func NewPuller(r Registry, keys KeyUnwrapper, s *store.Store, opts Options) *Puller {
	opts = opts.withDefaults()
	return &Puller{
		registry: r, keys: keys, store: s, opts: opts,
		tar:       unpack.New(opts.Unpack),
		bundler:   bundle.New(opts.Scratch),
		downloads: newPlaces(opts.MaxDownloads, opts.MaxDownloadsPerImage),
		unpacks:   newPlaces(opts.MaxUnpacks, opts.MaxUnpacksPerImage),
		pulls:     make(map[pullKey]*pull),
		flights:   make(map[digest.Digest]*flight),
		contents:  make(map[store.Content]*content),
		originals: make(map[store.Content]original),
		admitted:  make(map[pullKey]admission),
		bundles:   make(map[string]*mounted),
		measured:  make(map[pullEvent]*measurement),
	}
}

// Close ends all pulls and measurements and waits for them. Bundles stay mounted.
func (p *Puller) Close() {
	p.mu.Lock()
	p.closed = true
	var ended []<-chan struct{}
	for _, pl := range p.pulls {
		pl.fail(errClosed)
		ended = append(ended, pl.ended)
	}
	for _, m := range p.measured {
		m.cancel(errClosed)
		ended = append(ended, m.done)
	}
	p.mu.Unlock()
	for _, c := range ended {
		<-c
	}
}

// PullLayer returns the directory of one layer of an image, with its bytes on
// disk and its inodes, once the layer and its parents are verified and in the
// store; the layer is then claimed until RemoveLayer. Before that Options.Policy
// has allowed the image under the name in image, and Options.Measure has
// recorded it, once for each name and manifest.
//
// The first call for an image starts all its layers, side by side; calls for
// the others join it. The pull goes on when its callers have got their layers,
// and ends when its last caller gives up by ctx, or asked for a layer that the
// image does not have. A layer that fails ends the
// pull with its error for all; layers already in the store stay.
//
// A layer that is there costs no request where neither a policy nor a
// measurement is configured. Otherwise the call is about an image, not about a
// layer alone: the registry is asked for the manifest, which says whether the
// layer is of that image and which index it is from, and the policy for its
// verdict. Callers ask for an image layer by layer, so a verdict for a name and
// manifest digest counts for Options.VerdictLifetime; a refusal is never
// remembered, and neither is a name without a digest.
//
// manifest may name an index or a platform's manifest; without it image's own
// digest or tag counts. Errors have an errdefs class and are a *LayerError
// where they come from the pull; a chain id that is not of the image, or a
// malformed argument, is InvalidArgument.
func (p *Puller) PullLayer(ctx context.Context, image string, manifest, chainID digest.Digest) (path string, size, inodes int64, err error) {
	if err := chainID.Validate(); err != nil {
		return "", 0, 0, classify(fmt.Errorf("chain id %.80q: %w: %w", chainID, err, errdefs.ErrInvalidArgument))
	}
	key, err := newPullKey(image, manifest)
	if err != nil {
		return "", 0, 0, err
	}
	lease := p.store.Lease() // until the layer is claimed
	defer lease.End()
	found, known := p.admission(key, chainID)
	if !known || !p.present(chainID) {
		if found, err = p.pullLayer(ctx, key, chainID); err != nil {
			return "", 0, 0, err
		}
	}
	if err := p.measureOnce(ctx, image, found); err != nil {
		return "", 0, 0, err
	}
	layer, err := p.store.Claim(chainID)
	if err != nil {
		return "", 0, 0, classify(err)
	}
	return layer.Path, layer.Size, layer.Inodes, nil
}

// PullLayers takes all layers of an image to the store and returns what it is:
// the first half of PullImage. Policy and measurement are as for PullLayer, and
// so are errors. The layers are neither claimed nor held: they stay for as long as
// the store keeps an image that is not in use.
func (p *Puller) PullLayers(ctx context.Context, image string) (registry.Image, error) {
	key, err := newPullKey(image, "")
	if err != nil {
		return registry.Image{}, err
	}
	lease := p.store.Lease() // until the image is recorded
	defer lease.End()
	found, err := p.pullAll(ctx, key)
	if err != nil {
		return registry.Image{}, err
	}
	if err := p.measureOnce(ctx, image, found.Manifest); err != nil {
		return registry.Image{}, err
	}
	return found, nil
}

// pullAll returns the image once all its layers are in the store, and recorded
// there.
func (p *Puller) pullAll(ctx context.Context, key pullKey) (found registry.Image, err error) {
	err = p.await(ctx, key, func(i registry.Image) (int, error) {
		found = i
		return len(i.Layers), nil
	})
	if err == nil {
		p.record(ctx, found) // the pull does so too, but perhaps only after it has served its callers
	}
	return found, err
}

// pullLayer returns the digest of the image's manifest once the layer is there.
func (p *Puller) pullLayer(ctx context.Context, key pullKey, chainID digest.Digest) (manifest digest.Digest, err error) {
	err = p.await(ctx, key, func(i registry.Image) (int, error) {
		n := i.Find(chainID)
		if n < 0 {
			return 0, errForeignLayer(chainID, key.name)
		}
		manifest = i.Manifest
		return n + 1, nil
	})
	return manifest, err
}

// RemoveLayer takes a layer out of the store. One that is not there is no
// error; one that a mounted bundle uses is FailedPrecondition.
func (p *Puller) RemoveLayer(_ context.Context, chainID digest.Digest) error {
	if err := p.store.Remove(chainID); err != nil && !errdefs.IsNotFound(err) {
		return classify(err)
	}
	return nil
}

// present reports whether a layer and all its parents are in the store.
func (p *Puller) present(chainID digest.Digest) bool {
	for chainID != "" {
		layer, ok := p.store.Layer(chainID)
		if !ok {
			return false
		}
		chainID = layer.Parent
	}
	return true
}

// Images are the images whose layers are all in the store, the least recently
// used first, with what they take.
func (p *Puller) Images() []store.Image { return p.store.Images() }

// Usage is what the store has in the whole.
func (p *Puller) Usage() (store.Usage, error) {
	u, err := p.store.Usage()
	return u, classify(err)
}

// GC removes from the store what is too old, or over its limit.
func (p *Puller) GC(ctx context.Context) (store.Result, error) {
	r, err := p.store.GC(ctx)
	return r, classify(err)
}
