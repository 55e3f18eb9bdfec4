// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// gate is an image policy by name.
type gate struct {
	mu      sync.Mutex
	all     bool             // guarded by mu, as are the next
	away    error            // nobody knows whether there is a policy
	refused map[string]error // what it says of a name
	asked   []string
	hook    func()
}

func (g *gate) AdmitsAll(context.Context) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all, g.away
}

func (g *gate) AdmitImage(_ context.Context, name string, manifest, index digest.Digest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hook != nil {
		g.hook()
	}
	g.asked = append(g.asked, strings.TrimSpace(fmt.Sprintln(name, manifest, index)))
	return g.refused[name]
}

func (g *gate) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

func (g *gate) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked := g.asked
	g.asked = nil
	return asked
}

// newGuarded is a node whose snapshotter asks the gate.
func newGuarded(t *testing.T) (*node, *gate) {
	t.Helper()
	g, late := &gate{refused: map[string]error{}}, &lateFinder{}
	n := newNodeWith(t, snapshotter.Options{Admitter: g, Images: late})
	late.Finder = imagefinder.New(n.db.ContentStore(), metadata.NewImageStore(n.db), imagefinder.Options{})
	return n, g
}

// tampered is the same image with another entry point.
func tampered(t *testing.T, img image) image {
	t.Helper()
	var config ocispec.Image
	var manifest ocispec.Manifest
	noError(t, json.Unmarshal(img.config, &config))
	noError(t, json.Unmarshal(img.manifest, &manifest))
	config.Config.Entrypoint = []string{"/bin/evil"}
	img.config = marshal(t, config)
	manifest.Config = descriptor(ocispec.MediaTypeImageConfig, img.config)
	img.manifest = marshal(t, manifest)
	img.desc = descriptor(ocispec.MediaTypeImageManifest, img.manifest)
	return img
}

// named pulls an image and gives it the name ref alone.
func (n *node) named(ctx context.Context, t *testing.T, img image, ref string) {
	t.Helper()
	noError(t, n.pull(ctx, img, ref, true))
	store := metadata.NewImageStore(n.db)
	noError(t, store.Delete(ctx, ref+"@"+img.desc.Digest.String()))
	if _, err := store.Create(ctx, images.Image{Name: ref, Target: img.desc}); err != nil {
		t.Error(err)
	}
}

// TestRefusedImageWithTheSameLayers is why containers are asked about:
// containerd pulls the second image without a word to the snapshotter.
func TestRefusedImageWithTheSameLayers(t *testing.T) {
	t.Parallel()
	n, g := newGuarded(t)
	ctx, img := inNamespace(t, "k8s.io"), newImage(t, "admitted", 3)
	evil, sn := tampered(t, img), n.db.Snapshotter("coffer")
	top := img.chains[2].String()
	const good, bad = "r.example/good:1", "r.example/bad:1"
	n.named(ctx, t, img, good)
	if _, err := sn.Prepare(ctx, "first", top); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{good + " " + img.desc.Digest.String()}, g.take()); diff != "" {
		t.Error(diff)
	}
	pulls := n.guest.count(img.chains[2])
	n.named(ctx, t, evil, bad)
	if n.guest.count(img.chains[2]) != pulls {
		t.Error("containerd asked for layers that it has")
	}
	g.set(func() {
		g.refused[bad] = fmt.Errorf("image policy: rejected by its rules: %w", errdefs.ErrPermissionDenied)
	})
	before := names(t, n.sn)
	_, err := sn.Prepare(ctx, "second", top)
	wantError(t, err, errdefs.ErrPermissionDenied, "image "+bad+" has the layers that the container is to have, and may not be used: remove it (crictl rmi, or ctr -n k8s.io images rm): image policy: rejected by its rules")
	_, err = sn.View(ctx, "view", top)
	wantError(t, err, errdefs.ErrPermissionDenied, bad)
	if diff := cmp.Diff(before, names(t, n.sn)); diff != "" {
		t.Errorf("a refused container has a snapshot: %s", diff)
	}
	// Nothing of that is about another namespace.
	other := inNamespace(t, "other")
	n.named(other, t, img, good)
	if _, err := sn.Prepare(other, "third", top); err != nil {
		t.Error(err)
	}
	// What is made already goes on, and what is refused is gone with its name.
	if _, err := sn.Mounts(ctx, "first"); err != nil {
		t.Error(err)
	}
	noError(t, metadata.NewImageStore(n.db).Delete(ctx, bad))
	if _, err := sn.Prepare(ctx, "second", top); err != nil {
		t.Error(err)
	}
}

// TestTamperedTag has a registry serve another configuration under the name
// that is allowed.
func TestTamperedTag(t *testing.T) {
	t.Parallel()
	n, g := newGuarded(t)
	ctx, img := inNamespace(t, "k8s.io"), newImage(t, "tag", 1)
	n.named(ctx, t, img, "r.example/app:1")
	evil, store := tampered(t, img), metadata.NewImageStore(n.db)
	noError(t, n.pull(ctx, evil, "r.example/other:1", true))
	if _, err := store.Update(ctx, images.Image{Name: "r.example/app:1", Target: evil.desc}, "target"); err != nil {
		t.Fatal(err)
	}
	noError(t, store.Delete(ctx, "r.example/other:1@"+evil.desc.Digest.String()))
	if _, err := n.db.Snapshotter("coffer").Prepare(ctx, "container", img.chains[0].String()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"r.example/app:1 " + evil.desc.Digest.String()}, g.take()); diff != "" {
		t.Errorf("the policy did not hear of the manifest: %s", diff)
	}
}

// TestNobodyToAsk has each of those away who have a say.
func TestNobodyToAsk(t *testing.T) {
	t.Parallel()
	n, g := newGuarded(t)
	ctx, img := inNamespace(t, "k8s.io"), newImage(t, "away", 1)
	n.named(ctx, t, img, "r.example/app:1")
	sn, top := n.db.Snapshotter("coffer"), img.chains[0].String()
	unavailable := fmt.Errorf("coffer-guest is not running: %w", errdefs.ErrUnavailable)
	g.set(func() { g.away = unavailable })
	_, err := sn.Prepare(ctx, "container", top)
	wantError(t, err, errdefs.ErrUnavailable, "whether there is an image policy is not known: coffer-guest is not running")
	g.set(func() { g.away, g.refused["r.example/app:1"] = nil, unavailable })
	_, err = sn.Prepare(ctx, "container", top)
	wantError(t, err, errdefs.ErrUnavailable, "whether image r.example/app:1 may be used cannot be told: coffer-guest is not running")

	g.set(func() { g.all = true })
	if _, err := sn.Prepare(ctx, "container", top); err != nil {
		t.Error(err)
	}
	if _, err := sn.Prepare(ctx, "empty", ""); err != nil {
		t.Error(err)
	}
}

// brokenLister is a containerd that does not answer.
type brokenLister struct{}

func (brokenLister) ImagesOf(context.Context, digest.Digest, func(string, digest.Digest, digest.Digest) error) error {
	return fmt.Errorf("containerd: no answer: %w", errdefs.ErrUnavailable)
}

func TestImagesAreListedOnlyForAPolicy(t *testing.T) {
	t.Parallel()
	list, guest, g := chains("listed", 1), newGuest(t), &gate{}
	for _, o := range []snapshotter.Options{
		{Admitter: g, Images: brokenLister{}},
		{Admitter: g, Images: brokenLister{}, Route: snapshotter.Guest},
	} {
		sn, err := snapshotter.Open(t.TempDir(), guest, guest, o)
		if err != nil {
			t.Fatal(err)
		}
		pull(t, sn, list)
		parent := list[0].String()
		g.set(func() { g.all = false })
		if _, err = sn.Prepare(t.Context(), "default/1/a", parent); o.Route == snapshotter.Guest {
			noError(t, err) // the guest that pulls has a policy of its own
		} else {
			wantError(t, err, errdefs.ErrUnavailable, "containerd: no answer")
		}
		g.set(func() { g.all = true })
		_, err = sn.Prepare(t.Context(), "default/2/b", parent)
		noError(t, err)
		noError(t, sn.Close())
	}
	_, err := snapshotter.Open(t.TempDir(), guest, guest, snapshotter.Options{Admitter: g})
	wantError(t, err, errdefs.ErrInvalidArgument, "an Admitter needs Images")
}

// TestWhatIsNoContainer tells what is made on layers.
func TestWhatIsNoContainer(t *testing.T) {
	t.Parallel()
	n, g := newGuarded(t)
	ctx, img := inNamespace(t, "default"), newImage(t, "layers", 2)
	n.named(ctx, t, img, "r.example/app:1")
	sn := n.db.Snapshotter("coffer")
	middle, own := img.chains[0].String(), digest.FromString("unpacked by containerd").String()

	// A container is on top of an image.
	_, err := sn.Prepare(ctx, "container", middle)
	wantError(t, err, errdefs.ErrFailedPrecondition, "no image of this containerd namespace has the topmost layer "+middle)
	for _, key := range []string{"extract-1-a", "extract " + own, "unpack-1 " + own, "extract-1-a sha256:12"} {
		_, err = sn.Prepare(ctx, key, middle)
		wantError(t, err, errdefs.ErrFailedPrecondition, "no image of this containerd namespace")
	}
	// What containerd unpacks is asked about when something is made on it.
	extract := "extract-1-a " + own
	if _, err := sn.Prepare(ctx, extract, middle); err != nil {
		t.Fatal(err)
	}
	noError(t, sn.Commit(ctx, own, extract))
	_, err = sn.Prepare(ctx, "container", own)
	wantError(t, err, errdefs.ErrFailedPrecondition, own)
	// And what others commit, under names of their own, is theirs.
	if _, err := sn.Prepare(ctx, "container", img.chains[1].String()); err != nil {
		t.Fatal(err)
	}
	noError(t, sn.Commit(ctx, "built", "container"))
	g.take()
	if _, err := sn.Prepare(ctx, "step", "built"); err != nil || g.take() != nil {
		t.Error(err)
	}
	// The image is gone, the container made of it is not.
	noError(t, metadata.NewImageStore(n.db).Delete(ctx, "r.example/app:1"))
	_, err = sn.Prepare(ctx, "another", img.chains[1].String())
	wantError(t, err, errdefs.ErrFailedPrecondition, "pull the image again")
	if _, err := sn.Mounts(ctx, "step"); err != nil {
		t.Error(err)
	}
}

// TestAdmissionWhileContainerdCollects calls containerd back while its garbage
// collector waits for the snapshotter.
func TestAdmissionWhileContainerdCollects(t *testing.T) {
	t.Parallel()
	n, g := newGuarded(t)
	ctx, img, gone := inNamespace(t, "default"), newImage(t, "kept", 2), newImage(t, "collected", 1)
	n.named(ctx, t, img, "r.example/app:1")
	store, sn := metadata.NewImageStore(n.db), n.db.Snapshotter("coffer")
	for i := range 10 {
		n.named(ctx, t, gone, "r.example/gone:1")
		noError(t, store.Delete(ctx, "r.example/gone:1"))
		collected := make(chan error, 1)
		g.set(func() {
			g.hook = func() {
				go func() {
					_, err := n.db.GarbageCollect(ctx)
					collected <- err
				}()
				for range 3 {
					if _, err := store.List(ctx); err != nil {
						t.Error(err)
					}
					if _, err := content.ReadBlob(ctx, n.db.ContentStore(), img.desc); err != nil {
						t.Error(err)
					}
				}
			}
		})
		if _, err := sn.Prepare(ctx, fmt.Sprint("container", i), img.chains[1].String()); err != nil {
			t.Error(err)
		}
		noError(t, <-collected)
		if _, err := sn.Stat(ctx, img.chains[1].String()); err != nil {
			t.Error(err)
		}
	}
}
