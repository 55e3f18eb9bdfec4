// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// node is containerd's own metadata, content store and unpacker over a coffer
// snapshotter, without the daemon around them.
type node struct {
	db    *metadata.DB
	root  string
	guest *guest
	sn    *current
}

// current is the snapshotter as containerd sees it; what is behind it can change.
type current struct{ *snapshotter.Snapshotter }

// lateFinder is an ImageFinder that is set after the Snapshotter is open.
type lateFinder struct{ *imagefinder.Finder }

func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeWith(t, snapshotter.Options{})
}

func newNodeWith(t *testing.T, o snapshotter.Options) *node {
	t.Helper()
	root, g, finder := t.TempDir(), newGuest(t), &lateFinder{}
	opened, err := snapshotter.Open(filepath.Join(root, "coffer"), g, finder, o)
	if err != nil {
		t.Fatal(err)
	}
	sn := &current{opened}
	store, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		noError(t, file.Close())
		noError(t, sn.Close())
	})
	db := metadata.NewDB(file, store, map[string]snapshots.Snapshotter{"coffer": sn})
	noError(t, db.Init(t.Context()))
	finder.Finder = imagefinder.New(db.ContentStore(), metadata.NewImageStore(db), imagefinder.Options{Registries: []string{"127.0.0.1:5055"}})
	return &node{db: db, root: root, guest: g, sn: sn}
}

// image is an image of encrypted layers, of which containerd gets manifest and
// config.
type image struct {
	manifest, config []byte
	desc             ocispec.Descriptor
	chains           []digest.Digest
}

func newImage(t *testing.T, name string, n int) image {
	t.Helper()
	config := ocispec.Image{Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i := range n {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(fmt.Sprint("plain", name, i)))
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted",
			Digest:    digest.FromString(fmt.Sprint("encrypted", name, i)),
			Size:      1000,
		})
	}
	img := image{config: marshal(t, config)}
	manifest.Config = descriptor(ocispec.MediaTypeImageConfig, img.config)
	img.manifest = marshal(t, manifest)
	img.desc = descriptor(ocispec.MediaTypeImageManifest, img.manifest)
	img.chains = identity.ChainIDs(config.RootFS.DiffIDs)
	return img
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// noApplier fails: no layer is to be unpacked by containerd.
type noApplier struct{ diff.Applier }

func (noApplier) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fmt.Errorf("containerd applies a layer: %w", errdefs.ErrInternal)
}

// pull does what containerd's transfer service does, with img as the registry's
// answer. ref "" is an import. annotate adds CRI's labels.
func (n *node) pull(ctx context.Context, img image, ref string, annotate bool) error {
	store := n.db.ContentStore()
	blobs := map[digest.Digest][]byte{img.desc.Digest: img.manifest, digest.FromBytes(img.config): img.config}
	fetch := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		blob, ok := blobs[desc.Digest]
		if !ok {
			return nil, fmt.Errorf("containerd fetches layer %s: %w", desc.Digest, errdefs.ErrInternal)
		}
		return nil, content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(blob), desc)
	})
	handlers := []images.Handler{fetch, images.SetChildrenLabels(store, images.ChildrenHandler(store))}
	if ref != "" {
		source, err := docker.AppendDistributionSourceLabel(store, ref)
		if err != nil {
			return err
		}
		handlers = append(handlers, source)
	}
	handler := images.Handler(images.Handlers(handlers...))
	if annotate {
		handler = snapshotters.AppendInfoHandlerWrapper(ref)(handler)
	}
	unpacker, err := unpack.NewUnpacker(ctx, store, unpack.WithUnpackPlatform(unpack.Platform{
		Platform: platforms.All, SnapshotterKey: "coffer", Snapshotter: n.db.Snapshotter("coffer"), Applier: noApplier{},
	}))
	if err != nil {
		return err
	}
	if err := images.Dispatch(ctx, unpacker.Unpack(handler), nil, img.desc); err != nil {
		return err
	}
	if _, err := unpacker.Wait(); err != nil {
		return err
	}
	_, err = metadata.NewImageStore(n.db).Create(ctx, images.Image{Name: ref + "@" + img.desc.Digest.String(), Target: img.desc})
	return err
}

func inNamespace(t *testing.T, ns string) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), ns)
}

func TestContainerdPullsLayers(t *testing.T) {
	t.Parallel()
	const ref = "127.0.0.1:5055/team/app:1"
	for name, tc := range map[string]struct {
		annotate bool
		image    string
	}{
		"with the labels of CRI":    {true, ref},
		"with a bare chain id only": {false, "127.0.0.1:5055/team/app@%s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, img := newNode(t), newImage(t, name, 3)
			for _, ns := range []string{"default", "k8s.io"} {
				ctx := inNamespace(t, ns)
				if err := n.pull(ctx, img, ref, tc.annotate); err != nil {
					t.Fatal(err)
				}
				if _, err := n.db.Snapshotter("coffer").Prepare(ctx, "container", img.chains[2].String()); err != nil {
					t.Error(err)
				}
			}
			if got := n.guest.count(img.chains[0]); got != 1 {
				t.Errorf("layer was pulled %d times", got)
			}
			want := tc.image
			if !tc.annotate {
				want = fmt.Sprintf(tc.image, img.desc.Digest)
			}
			if got := n.guest.images[img.chains[1]]; got != want+" "+img.desc.Digest.String() {
				t.Errorf("got image %s", got)
			}
			if got := names(t, n.sn); len(got) != 5 {
				t.Errorf("got snapshots %v, want 3 layers and 2 containers", got)
			}
		})
	}
}

func TestContainerdSharesBaseLayers(t *testing.T) {
	t.Parallel()
	n, ctx := newNode(t), inNamespace(t, "default")
	small, large := newImage(t, "base", 2), newImage(t, "base", 4)
	for _, img := range []image{small, large, small} {
		if err := n.pull(ctx, img, "registry.example/"+fmt.Sprint(len(img.chains))+":1", false); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	if got := n.guest.count(small.chains[1]); got != 1 {
		t.Errorf("shared layer was pulled %d times", got)
	}
}

func TestContainerdSeesPullError(t *testing.T) {
	t.Parallel()
	n, ctx, img := newNode(t), inNamespace(t, "default"), newImage(t, "denied", 3)
	denied := fmt.Errorf("kbs http://kbs: rule r of policy p: %w", errdefs.ErrPermissionDenied)
	n.guest.fail[img.chains[1]] = denied
	wantError(t, n.pull(ctx, img, "registry.example/app:1", false), errdefs.ErrPermissionDenied, denied.Error())
	// Nothing holds what is left of the failed pull.
	if _, err := n.db.GarbageCollect(ctx); err != nil {
		t.Error(err)
	}
	if got := names(t, n.sn); len(got) != 0 {
		t.Errorf("got snapshots %v, want none", got)
	}
	n.guest.set(func(g *guest) { clear(g.fail) })
	noError(t, n.pull(ctx, img, "registry.example/app:1", false))
}

func TestContainerdImport(t *testing.T) {
	t.Parallel()
	n, ctx, img := newNode(t), inNamespace(t, "default"), newImage(t, "imported", 1)
	wantError(t, n.pull(ctx, img, "", false), errdefs.ErrFailedPrecondition, "push it to a registry and pull it")
}

func TestContainerdCollectsGarbage(t *testing.T) {
	t.Parallel()
	n, img := newNode(t), newImage(t, "garbage", 3)
	ctx := inNamespace(t, "default")
	if err := n.pull(ctx, img, "registry.example/app:1", false); err != nil {
		t.Fatal(err)
	}
	collect := func() {
		t.Helper()
		if _, err := n.db.GarbageCollect(ctx); err != nil {
			t.Error(err)
		}
	}
	collect()
	if got := names(t, n.sn); len(got) != 3 {
		t.Fatalf("got snapshots %v, want the layers", got)
	}
	store := metadata.NewImageStore(n.db)
	noError(t, store.Delete(ctx, "registry.example/app:1@"+img.desc.Digest.String()))
	collect()
	if got := names(t, n.sn); len(got) != 0 {
		t.Errorf("got snapshots %v, want none", got)
	}
	for _, chain := range img.chains {
		if n.guest.has(chain) {
			t.Errorf("layer %s is still in the guest", chain)
		}
	}
	// And a lease keeps what a running pull has so far.
	lease, err := metadata.NewLeaseManager(n.db).Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	leased := leases.WithLease(ctx, lease.ID)
	_, err = n.db.Snapshotter("coffer").Prepare(leased, "extract", "", ref(img.chains[0]),
		snapshots.WithLabels(map[string]string{snapshotters.TargetRefLabel: "r/i:1", snapshotters.TargetManifestDigestLabel: img.desc.Digest.String()}))
	wantError(t, err, errdefs.ErrAlreadyExists, "")
	_, err = n.db.Snapshotter("coffer").Stat(leased, img.chains[0].String())
	noError(t, err)
	collect()
	if !n.guest.has(img.chains[0]) {
		t.Error("a leased layer was collected")
	}
}
