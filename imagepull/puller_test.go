// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

const kid = "kbs:///default/key/1"

func TestEveryMediaType(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	files := map[string]string{"etc/": "", "etc/hosts": "localhost", "a/b/c/deep": "implicit directories"}
	var image imagetest.Image
	for _, compression := range []imagetest.Compression{imagetest.None, imagetest.Gzip, imagetest.Zstd} {
		for _, docker := range []bool{false, true} {
			for _, nondistributable := range []bool{false, true} {
				l := imagetest.Layer{Files: files, Random: 300_000, Compression: compression, Docker: docker, NonDistributable: nondistributable}
				image.Layers = append(image.Layers, l)
				l.Key = &key
				image.Layers = append(image.Layers, l)
			}
		}
	}
	p := e.registry.Push(t, "a/all:v1", image)
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	e.clean(p, len(p.Layers))
	if got := e.keys.count(); got != len(p.Layers)/2 {
		t.Errorf("%d unwraps, want %d", got, len(p.Layers)/2)
	}
	for _, private := range e.keys.given {
		if !bytes.Equal(private, make([]byte, len(private))) {
			t.Error("private options are not cleared")
		}
	}
	for i, l := range p.Layers {
		if meta, _ := e.store.Layer(l.ChainID); meta.Encrypted != (i%2 == 1) || meta.Size < 300_000 || meta.Inodes < 4 || meta.Blob != l.Digest {
			t.Errorf("layer %d: %+v", i, meta)
		}
		if r := e.registry.Requests(l.Digest.String()); len(r) != 1 {
			t.Errorf("layer %d (%s): requests %+v", i, l.MediaType, r)
		}
	}
}

func TestPlainNeedsNoKeys(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil, nil)
	p := e.registry.Push(t, "a/plain:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {Compression: imagetest.Gzip}}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	key := imagetest.NewKey(t, kid)
	p = e.registry.Push(t, "a/encrypted:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key}}})
	if err := e.top(p); !errdefs.IsFailedPrecondition(err) || stageOf(err) != imagepull.StageUnwrap {
		t.Errorf("encrypted: %v", err)
	}
}

func TestPresentLayersCostNothing(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key}, {Key: &key}, {Key: &key}}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.registry.Away()
	for _, l := range p.Layers {
		if _, err := e.pull(t.Context(), p, l.ChainID); err != nil {
			t.Error(err)
		}
	}
	e.registry.Back(t)
	// One in the middle is gone: only that one is fetched again.
	if err := e.puller.RemoveLayer(t.Context(), p.Layers[1].ChainID); err != nil {
		t.Fatal(err)
	}
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	for i, want := range []int{1, 2, 1} {
		if got := len(e.registry.Requests(p.Layers[i].Digest.String())); got != want {
			t.Errorf("layer %d: %d requests, want %d", i, got, want)
		}
	}
	if got := e.keys.count(); got != 4 {
		t.Errorf("%d unwraps, want 4", got)
	}
	for range 2 {
		if err := e.puller.RemoveLayer(t.Context(), p.Chain()); err != nil {
			t.Error(err)
		}
	}
}

func TestCallsJoin(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	var layers []imagetest.Layer
	for range 10 {
		layers = append(layers, imagetest.Layer{Key: &key, Compression: imagetest.Gzip, Random: 100_000})
	}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: layers})
	var wg sync.WaitGroup
	for range 3 {
		for _, l := range p.Layers {
			wg.Go(func() {
				if _, err := e.pull(t.Context(), p, l.ChainID); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	e.has(p)
	if n := len(e.registry.Requests(p.Manifest.Digest.String())); n != 1 {
		t.Errorf("manifest was asked for %d times", n)
	}
	for i, l := range p.Layers {
		if n := len(e.registry.Requests(l.Digest.String())); n != 1 {
			t.Errorf("layer %d was fetched %d times", i, n)
		}
	}
	if got := e.keys.count(); got != len(layers) {
		t.Errorf("%d unwraps", got)
	}
}

func TestSequentialCallersKeepThePull(t *testing.T) {
	t.Parallel()
	// As containerd does: one layer after the other, from the bottom up.
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.MaxDownloads, o.MaxUnpacks = 1, 1 })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: make([]imagetest.Layer, 12)})
	for _, l := range p.Layers {
		if _, err := e.pull(t.Context(), p, l.ChainID); err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range p.Layers {
		if n := len(e.registry.Requests(l.Digest.String())); n != 1 {
			t.Errorf("layer %d was fetched %d times", i, n)
		}
	}
}

func TestImagesShareLayers(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	base := imagetest.Layer{Random: 200_000, Compression: imagetest.Gzip}
	first := e.registry.Push(t, "a/one:v1", imagetest.Image{Layers: []imagetest.Layer{base, {}}})
	base.Tar = first.Layers[0].Tar
	second := e.registry.Push(t, "a/two:v1", imagetest.Image{Layers: []imagetest.Layer{base, {}}})
	if first.Layers[0].ChainID != second.Layers[0].ChainID {
		t.Fatal("the test does not share a layer")
	}
	var wg sync.WaitGroup
	for _, p := range []imagetest.Pushed{first, second, first, second} {
		wg.Go(func() {
			if err := e.top(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	e.has(first)
	e.has(second)
	if n := len(e.registry.Requests(first.Layers[0].Digest.String())); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
}

func TestSharedLayerOutlivesItsFirstPull(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	base := imagetest.Layer{Random: 200_000}
	first := e.registry.Push(t, "a/one:v1", imagetest.Image{Layers: []imagetest.Layer{base}})
	base.Tar = first.Layers[0].Tar
	second := e.registry.Push(t, "a/two:v1", imagetest.Image{Layers: []imagetest.Layer{base, {}}})
	shared := first.Layers[0].Digest.String()
	e.registry.Fail(shared, imagetest.Fault{Times: 1, Stall: true, After: 1000})
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := e.pull(ctx, first, first.Chain()); errs <- err }()
	<-e.registry.Began(shared)
	go func() { errs <- e.top(second) }()
	<-e.registry.Began(second.Layers[1].Digest.String())
	cancel()
	got := errors.Join(<-errs, <-errs)
	if !errors.Is(got, context.Canceled) || errdefs.IsUnavailable(got) {
		t.Errorf("got %v", got)
	}
	e.has(second)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key, Random: 100_000}, {Random: 100_000}}})
	stalled := p.Layers[1].Digest.String()
	e.registry.Fail(stalled, imagetest.Fault{Times: 1, Stall: true, After: 5000})
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithCancel(t.Context())
	errs := make(chan error)
	for _, ctx := range []context.Context{first, second} {
		go func() { _, err := e.pull(ctx, p, p.Chain()); errs <- err }()
	}
	<-e.registry.Began(stalled)
	// The bottom layer is not held up, and its caller's leaving ends nothing.
	if _, err := e.pull(t.Context(), p, p.Layers[0].ChainID); err != nil {
		t.Fatal(err)
	}
	cancelFirst()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	cancelSecond()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	e.clean(p, 1)
	e.registry.Heal()
	if err := e.top(p); err != nil {
		t.Error(err)
	}
	e.has(p)
}

func TestCloseEndsPulls(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	keys := newKeyring(key)
	asked := make(chan struct{})
	keys.hook = func(ctx context.Context, _ string) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}
	e := newEnv(t, keys, nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key}}})
	errs := make(chan error)
	go func() { errs <- e.top(p) }()
	<-asked
	e.puller.Close()
	if err := <-errs; !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	if err := e.top(p); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
	e.clean(p, 0)
}

func TestArguments(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	other := digest.FromString("another layer")
	for name, tc := range map[string]struct {
		image           string
		manifest, chain digest.Digest
	}{
		"reference":      {"::", p.Manifest.Digest, p.Chain()},
		"manifest":       {p.Reference, "sha256:x", p.Chain()},
		"chain id":       {p.Reference, p.Manifest.Digest, "x"},
		"no chain id":    {p.Reference, p.Manifest.Digest, ""},
		"not its layer":  {p.Reference, p.Manifest.Digest, other},
		"of another tag": {p.Reference, "", other},
	} {
		if _, _, _, err := e.puller.PullLayer(t.Context(), tc.image, tc.manifest, tc.chain); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A layer that the image does not have pulls nothing.
func TestForeignLayerEndsThePull(t *testing.T) {
	t.Parallel()
	r, edit := recorded()
	e := newEnv(t, newKeyring(), edit)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
	for _, l := range p.Layers {
		e.registry.Fail(l.Digest.String(), imagetest.Fault{Stall: true})
	}
	if _, err := e.pull(t.Context(), p, digest.FromString("another layer")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	e.clean(p, 0)
	checkPairs(t, r.take())
	e.registry.Heal()
	if err := e.top(p); err != nil {
		t.Error(err)
	}
	events := r.take()
	if checkPairs(t, events); len(events) == 0 || events[0].Stage != imagepull.StagePull {
		t.Errorf("the pull went on for nobody: %+v", events)
	}
}

func TestSeveralRecipients(t *testing.T) {
	t.Parallel()
	key, unknown := imagetest.NewKey(t, kid), imagetest.NewKey(t, "kbs:///default/key/unknown")
	e := newEnv(t, newKeyring(key), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Keys: []imagetest.Key{unknown, key}}}})
	if err := e.top(p); err != nil {
		t.Error(err)
	}
	denied := imagetest.NewKey(t, "kbs:///default/key/denied")
	e.keys.hook = func(_ context.Context, kid string) error {
		if kid == denied.KID {
			return fmt.Errorf("kbs: policy denied %s: %w", kid, errdefs.ErrPermissionDenied)
		}
		return nil
	}
	p = e.registry.Push(t, "a/c:v1", imagetest.Image{Layers: []imagetest.Layer{{Keys: []imagetest.Key{unknown, denied, unknown}}}})
	if err := e.top(p); !errdefs.IsPermissionDenied(err) || stageOf(err) != imagepull.StageUnwrap {
		t.Errorf("got %v", err)
	}
	p = e.registry.Push(t, "a/d:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key, Edit: func(d *ocispec.Descriptor) {
		const keys = "org.opencontainers.image.enc.keys."
		d.Annotations[keys+"jwe"] = d.Annotations[keys+"provider.attestation-agent"]
		delete(d.Annotations, keys+"provider.attestation-agent")
	}}}})
	if err := e.top(p); !errdefs.IsInvalidArgument(err) || !containsAll(err.Error(), "jwe", "coffer encrypt --to kbs:///") {
		t.Errorf("got %v", err)
	}
}
