// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/coffer-cc/coffer/imagepull/bundle"
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

// The defaults of Options.
const (
	DefaultMaxDownloads = 6
	DefaultTries        = 4
	DefaultRetryDelay   = time.Second
)

// Options of a Puller. The zero value is the default.
type Options struct {
	// MaxDownloads is how many layers are downloaded at a time, over all
	// images; 0 means DefaultMaxDownloads.
	MaxDownloads int
	// MaxUnpacks is how many layers are decompressed and applied at a time;
	// 0 means DefaultMaxUnpacks.
	MaxUnpacks int
	// Tries is how often a request is made that fails for a passing reason
	// without 1 MiB of progress; 0 means DefaultTries.
	Tries int
	// RetryDelay is the first pause before another try, about; it doubles each
	// time. 0 means DefaultRetryDelay.
	RetryDelay time.Duration
	// VerifyBeforeUnpack keeps each blob in the store until its digest and MAC
	// hold, and only then decompresses and unpacks it. It costs the blob's size
	// in space and the overlap of download and unpacking in time.
	VerifyBeforeUnpack bool
	// Unpack bounds what a layer may unpack to.
	Unpack unpack.Options
	// Scratch is the directory for the writable layers of bundles; without one
	// PullImage is refused. Best on the file system of the store.
	Scratch string
	// Progress is told what happens, if it is set. It is called from many
	// goroutines at a time and must not block.
	Progress func(Event)
	// Logger gets one line for each pull and each retry; nil discards them.
	Logger *slog.Logger
}

// Event is a step of a layer.
type Event struct {
	// Image is the image by digest, Layer the layer's chain id.
	Image string
	Layer digest.Digest
	// Stage is what happens: StageFetch as the download goes on, StageCommit
	// once the layer is in the store (also for one that was there before).
	Stage Stage
	// Bytes of the blob are done, of Total.
	Bytes, Total int64
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
	downloads *semaphore.Weighted
	unpacks   *semaphore.Weighted

	mu      sync.Mutex
	closed  bool                      // guarded by mu, as are those below
	pulls   map[pullKey]*pull         // running pulls of images
	flights map[digest.Digest]*flight // layers on their way, by chain id
	bundles map[string]*mounted       // by path
}

// DefaultMaxUnpacks is one unpack for each CPU, between 2 and 8.
func DefaultMaxUnpacks() int { return min(max(runtime.GOMAXPROCS(0), 2), 8) }

// NewPuller makes a puller that stores layers in s. keys may be nil where only
// plain images are pulled. It starts nothing.
func NewPuller(r Registry, keys KeyUnwrapper, s *store.Store, opts Options) *Puller {
	if opts.MaxDownloads <= 0 {
		opts.MaxDownloads = DefaultMaxDownloads
	}
	if opts.MaxUnpacks <= 0 {
		opts.MaxUnpacks = DefaultMaxUnpacks()
	}
	if opts.Tries <= 0 {
		opts.Tries = DefaultTries
	}
	if opts.RetryDelay <= 0 {
		opts.RetryDelay = DefaultRetryDelay
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Unpack.Logger == nil {
		opts.Unpack.Logger = opts.Logger
	}
	return &Puller{
		registry: r, keys: keys, store: s, opts: opts,
		tar:       unpack.New(opts.Unpack),
		bundler:   bundle.New(opts.Scratch),
		downloads: semaphore.NewWeighted(int64(opts.MaxDownloads)),
		unpacks:   semaphore.NewWeighted(int64(opts.MaxUnpacks)),
		pulls:     make(map[pullKey]*pull),
		flights:   make(map[digest.Digest]*flight),
		bundles:   make(map[string]*mounted),
	}
}

// Close ends all pulls and waits for them. Bundles stay mounted.
func (p *Puller) Close() {
	p.mu.Lock()
	p.closed = true
	var running []*pull
	for _, pl := range p.pulls {
		running = append(running, pl)
	}
	p.mu.Unlock()
	for _, pl := range running {
		p.fail(pl, errClosed)
	}
	for _, pl := range running {
		<-pl.ended
	}
}

// PullLayer returns the directory of one layer of an image, with its bytes on
// disk and its inodes, once the layer and its parents are verified and in the
// store; the layer is then claimed until RemoveLayer. A layer that is there
// costs no request.
//
// The first call for an image starts all its layers, side by side; calls for
// the others join it. The pull goes on when its callers have got their layers,
// and ends when its last caller gives up by ctx, or asked for a layer that the
// image does not have. A layer that fails ends the
// pull with its error for all; layers already in the store stay.
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
	if !p.present(chainID) {
		if err := p.pullLayer(ctx, key, chainID); err != nil {
			return "", 0, 0, err
		}
	}
	layer, err := p.store.Claim(chainID)
	if err != nil {
		return "", 0, 0, classify(err)
	}
	return layer.Path, layer.Size, layer.Inodes, nil
}

func (p *Puller) pullLayer(ctx context.Context, key pullKey, chainID digest.Digest) error {
	return p.await(ctx, key, func(i registry.Image) (int, error) {
		n := i.Find(chainID)
		if n < 0 {
			return 0, classify(fmt.Errorf("chain id %s is not of image %s: %w", chainID, i.Reference, errdefs.ErrInvalidArgument))
		}
		return n + 1, nil
	})
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

func (p *Puller) progress(image registry.Image, layer registry.Layer, stage Stage, bytes int64) {
	if p.opts.Progress != nil {
		p.opts.Progress(Event{Image: image.Reference, Layer: layer.ChainID, Stage: stage, Bytes: bytes, Total: layer.Size})
	}
}
