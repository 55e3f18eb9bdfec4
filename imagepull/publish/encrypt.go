// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Options say for whom and how to encrypt. The zero value is not enough: an
// image needs a recipient.
type Options struct {
	// Recipients get the key of every layer; at least one.
	Recipients []Recipient
	// Platform chooses one image out of an index; nil encrypts all.
	Platform *ocispec.Platform
	// Access reaches the registries of both references.
	Access Access
	// Parallel bounds the layers in work at once; 0 means one per core.
	Parallel int
	// TempDir holds the ciphertext of those layers; "" means the system's
	// folder for temporary files. Nothing is left there, not even by a kill.
	TempDir string
	// Ready, if set, is called once the source has been read and found fit
	// for encryption, before anything is written. An error stops the run.
	Ready func(ctx context.Context) error
	// Accounts says which images tell hosts their users and groups.
	Accounts Accounts
	// Progress, if set, is told of every step, from several goroutines.
	Progress func(Event)
}

// Result says what became of the image.
type Result struct {
	// Image is the new root manifest: an index when the source was one and
	// no platform was chosen.
	Image ocispec.Descriptor
	// Images counts the platform images in it.
	Images int
	// Layers lists the distinct layers.
	Layers []Layer
	// Dropped lists entries of an index that describe the plain image, such
	// as build attestations and their bills of material; they are left out.
	Dropped []ocispec.Descriptor
	// Accounts counts the images that tell their users and groups.
	Accounts int
	// Notes are for the publisher to read: what will not work with the image.
	Notes []string
}

// Layer pairs a plain layer with its encrypted form.
type Layer struct {
	Plain, Encrypted ocispec.Descriptor
}

// destination is where an image is written. Nothing that push and pushManifest
// write is visible under a name before commit.
type destination interface {
	prepare() error
	exists(ctx context.Context, desc ocispec.Descriptor) (bool, error)
	push(ctx context.Context, desc ocispec.Descriptor, body io.Reader) error
	pushManifest(ctx context.Context, desc ocispec.Descriptor, data []byte) error
	commit(ctx context.Context, desc ocispec.Descriptor, data []byte) error
	// abort takes back what it can and says what is left.
	abort(ctx context.Context) string
}

// Encrypt reads the image src, encrypts its layers and writes it to dst, which
// must have a tag if it is in a registry. Configurations stay as they are, so
// image IDs do not change; Docker manifests become OCI ones.
//
// On an error nothing is visible at dst, and the text says what is left there;
// only after one that is ErrOutcomeUnknown, the image may be visible.
// Classes: InvalidArgument (references, recipients), NotFound, Unauthenticated
// and PermissionDenied (registry), FailedPrecondition (encrypted already),
// NotImplemented (media type), DataLoss (the source does not match its
// digests), ResourceExhausted (disk full), Unavailable (registry away).
func Encrypt(ctx context.Context, src, dst Reference, opts Options) (Result, error) {
	if err := checkTargets(src, dst, opts); err != nil {
		return Result{}, err
	}
	from, to := open(src, opts.Access), open(dst, opts.Access)
	if err := to.prepare(); err != nil {
		return Result{}, err
	}
	work, err := newPlan(ctx, from, opts.Platform)
	if err != nil {
		return Result{}, fmt.Errorf("read %s: %w", src, err)
	}
	if opts.Ready != nil {
		if err := opts.Ready(ctx); err != nil {
			return Result{}, err
		}
	}
	e := &encryptor{
		from: from, to: to, opts: opts, done: map[digest.Digest]ocispec.Descriptor{},
		users: map[digest.Digest]string{}, scans: map[digest.Digest]layerAccounts{},
	}
	result, err := e.run(ctx, work)
	if errors.Is(err, ErrOutcomeUnknown) {
		return Result{}, fmt.Errorf("%w; no answer to the last request: see with coffer inspect %s whether the image is there", err, dst)
	}
	if err != nil {
		left := to.abort(context.WithoutCancel(ctx))
		return Result{}, fmt.Errorf("%w; %s", err, left)
	}
	return result, nil
}

func checkTargets(src, dst Reference, opts Options) error {
	switch {
	case len(opts.Recipients) == 0:
		return invalid("no recipient: nobody could decrypt the image")
	case dst.Digest != "":
		return invalid("destination %s: its digest is known only afterwards: name a tag", dst)
	case dst.Registry != "" && dst.Tag == "":
		return invalid("destination %s: name a tag", dst)
	case dst.Layout != "" && sameFolder(src.Layout, dst.Layout):
		return invalid("destination %s is the source's folder: the plain layers would stay beside the encrypted ones: name another folder", dst)
	}
	return nil
}

func sameFolder(a, b string) bool {
	if a == "" {
		return false
	}
	return resolved(a) == resolved(b)
}

func resolved(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return filepath.Clean(dir)
}

// place is where an image is, to read or to write.
type place interface {
	source
	destination
}

func open(ref Reference, access Access) place {
	if ref.Layout != "" {
		return &layoutImage{ref: ref}
	}
	return newRemote(ref, access)
}

// encryptor carries out a plan.
type encryptor struct {
	from source
	to   destination
	opts Options

	mu   sync.Mutex
	done map[digest.Digest]ocispec.Descriptor // by plain digest; guarded by mu

	users map[digest.Digest]string        // USER of the images that tell their accounts, by manifest
	scans map[digest.Digest]layerAccounts // of the layers that are looked into; values guarded by mu
	notes []string
}

func (e *encryptor) run(ctx context.Context, work *plan) (Result, error) {
	if err := e.planAccounts(ctx, work.root); err != nil {
		return Result{}, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	parallel := e.opts.Parallel
	if parallel <= 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	group.SetLimit(parallel)
	for _, layer := range work.layers {
		group.Go(func() error {
			encrypted, err := e.layer(groupCtx, layer)
			if err != nil {
				return fmt.Errorf("layer %s: %w", layer.Digest, err)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			e.done[layer.Digest] = encrypted
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Result{}, err
	}
	for _, config := range work.configs {
		if err := e.config(ctx, config); err != nil {
			return Result{}, fmt.Errorf("image configuration: %w", err)
		}
	}
	root, data, err := e.rewrite(ctx, work.root)
	if err != nil {
		return Result{}, err
	}
	if err := e.to.commit(ctx, root, data); err != nil {
		return Result{}, err
	}
	result := Result{Image: root, Images: work.images, Dropped: work.dropped, Accounts: len(e.users), Notes: e.notes}
	for _, layer := range work.layers {
		result.Layers = append(result.Layers, Layer{Plain: layer, Encrypted: e.done[layer.Digest]})
	}
	return result, nil
}

// config copies an image configuration, byte for byte.
func (e *encryptor) config(ctx context.Context, desc ocispec.Descriptor) error {
	if ok, err := e.to.exists(ctx, desc); err != nil || ok {
		return err
	}
	data, err := readBlob(ctx, e.from, desc)
	if err != nil {
		return err
	}
	return retrying(ctx, func() error { return e.to.push(ctx, desc, bytes.NewReader(data)) })
}

// rewrite makes the new form of a node, after having written its children.
func (e *encryptor) rewrite(ctx context.Context, n *node) (ocispec.Descriptor, []byte, error) {
	if n.manifest != nil {
		return e.rewriteManifest(n)
	}
	index := *n.index
	index.MediaType = ocispec.MediaTypeImageIndex
	index.Manifests = nil
	for _, child := range n.children {
		desc, data, err := e.rewrite(ctx, child)
		if err != nil {
			return desc, nil, err
		}
		if err := retrying(ctx, func() error { return e.to.pushManifest(ctx, desc, data) }); err != nil {
			return desc, nil, err
		}
		index.Manifests = append(index.Manifests, desc)
	}
	return encode(n.desc, index, index.MediaType)
}

func (e *encryptor) rewriteManifest(n *node) (ocispec.Descriptor, []byte, error) {
	manifest := *n.manifest
	manifest.MediaType = ocispec.MediaTypeImageManifest
	if manifest.Config.MediaType == dockerConfig {
		manifest.Config.MediaType = ocispec.MediaTypeImageConfig
	}
	manifest.Layers = make([]ocispec.Descriptor, 0, len(n.manifest.Layers))
	for _, layer := range n.manifest.Layers {
		manifest.Layers = append(manifest.Layers, encryptedDescriptor(layer, e.done[layer.Digest]))
	}
	e.annotateAccounts(n, manifest.Layers)
	return encode(n.desc, manifest, manifest.MediaType)
}

// encryptedDescriptor keeps what the manifest says of a layer. Embedded data
// and foreign addresses go: both lead to the plain bytes.
func encryptedDescriptor(plain, encrypted ocispec.Descriptor) ocispec.Descriptor {
	mediaType, _ := encryptedMediaType(plain.MediaType)
	annotations := maps.Clone(plain.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, encrypted.Annotations)
	return ocispec.Descriptor{
		MediaType: mediaType, Digest: encrypted.Digest, Size: encrypted.Size,
		Annotations: annotations, Platform: plain.Platform, ArtifactType: plain.ArtifactType,
	}
}

func encode(old ocispec.Descriptor, document any, mediaType string) (ocispec.Descriptor, []byte, error) {
	data, err := json.Marshal(document)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("marshal manifest: %w", err)
	}
	return ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
		Annotations: old.Annotations, Platform: old.Platform, ArtifactType: old.ArtifactType,
	}, data, nil
}
