// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

func TestPullImage(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{
		Config: ocispec.ImageConfig{User: "app", Cmd: []string{"/run"}, WorkingDir: "/w"},
		Layers: []imagetest.Layer{
			{Key: &key, Files: map[string]string{"etc/passwd": "app:x:7:8::/:/bin/sh\n", "gone": "gone", "dir/old": "old"}},
			{Key: &key, Files: map[string]string{".wh.gone": "", "dir/.wh..wh..opq": "", "dir/new": "new"}, Compression: imagetest.Gzip},
		},
	})
	bundle := filepath.Join(e.root, "bundle")
	var wg sync.WaitGroup
	for range 3 { // all join the first
		wg.Go(func() {
			if got, err := e.puller.PullImage(t.Context(), p.Reference, bundle); err != nil || got != p.Manifest.Digest {
				t.Errorf("got %s, %v", got, err)
			}
		})
	}
	wg.Wait()
	rootfs := filepath.Join(bundle, "rootfs")
	for name, want := range map[string]string{"gone": "", "dir/old": "", "dir/new": "new", "etc/passwd": "app:x:7:8::/:/bin/sh\n"} {
		if got, _ := os.ReadFile(filepath.Join(rootfs, name)); string(got) != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	var spec specs.Spec
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	if u := spec.Process.User; u.UID != 7 || u.GID != 8 || spec.Process.Cwd != "/w" || !slices.Equal(spec.Process.Args, []string{"/run"}) {
		t.Errorf("got %+v", spec.Process)
	}
	scratch := filepath.Join(e.root, "scratch")
	if err := errors.Join(os.MkdirAll(filepath.Join(scratch, "stray", "upper"), 0o700), e.puller.Sweep()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) != 1 || left[0].Name() == "stray" {
		t.Errorf("writable layers after a sweep: %v, %v", left, err)
	}
	other := e.registry.Push(t, "a/other:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if _, err := e.puller.PullImage(t.Context(), other.Reference, bundle); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another image: %v", err)
	}
	if err := e.puller.RemoveLayer(t.Context(), p.Layers[0].ChainID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("RemoveLayer while mounted: %v", err)
	}
	for range 2 {
		if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.puller.RemoveLayer(t.Context(), p.Layers[0].ChainID); err != nil {
		t.Errorf("RemoveLayer after RemoveImage: %v", err)
	}
	if n := len(e.registry.Requests(p.Layers[0].Digest.String())); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestPullImageFailures(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	bundle := filepath.Join(e.root, "bundle")
	bad := e.registry.Push(t, "a/bad:v1", imagetest.Image{Config: ocispec.ImageConfig{User: "nobody"}, Layers: []imagetest.Layer{{Key: &key}}})
	empty := e.registry.Push(t, "a/empty:v1", imagetest.Image{})
	for name, tc := range map[string]struct {
		image, bundle string
		class         func(error) bool
	}{
		"user":            {bad.Reference, bundle, errdefs.IsInvalidArgument},
		"no layers":       {empty.Reference, bundle, errdefs.IsInvalidArgument},
		"no such image":   {e.registry.Host() + "/a/none:v1", bundle, errdefs.IsNotFound},
		"relative bundle": {bad.Reference, "bundle", errdefs.IsInvalidArgument},
		"reference":       {"::", bundle, errdefs.IsInvalidArgument},
	} {
		if _, err := e.puller.PullImage(t.Context(), tc.image, tc.bundle); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundle))
		if err != nil || len(mounts) > 0 {
			t.Errorf("%s: left mounted: %v %v", name, mounts, err)
		}
		if _, err := os.Lstat(filepath.Join(bundle, "rootfs")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: rootfs is left: %v", name, err)
		}
	}
	// A bundle that somebody else made stays, and holds nothing.
	foreign := filepath.Join(e.root, "foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o750), os.WriteFile(filepath.Join(foreign, "config.json"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	plainImage := e.registry.Push(t, "a/plain:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if _, err := e.puller.PullImage(t.Context(), plainImage.Reference, foreign); !errdefs.IsAlreadyExists(err) {
		t.Errorf("foreign bundle: %v", err)
	}
	if holders := e.store.Holders(); len(holders) > 0 {
		t.Errorf("held by %v", holders)
	}
	e.keys.hook = nil
	good := e.registry.Push(t, "a/good:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key}}})
	if _, err := e.puller.PullImage(t.Context(), good.Reference, bundle); err != nil {
		t.Errorf("a good image after them: %v", err)
	}
	if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
		t.Error(err)
	}
	plain := newEnv(t, nil, func(o *imagepull.Options) { o.Scratch = "" })
	if _, err := plain.puller.PullImage(t.Context(), "a/b", bundle); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no scratch: %v", err)
	}
}

// restarted is a puller on the same store as that of a new process.
func (e *env) restarted(t *testing.T) *imagepull.Puller {
	t.Helper()
	client, err := registry.NewClient(registry.Options{Insecure: []string{e.registry.Host()}})
	if err != nil {
		t.Fatal(err)
	}
	p := imagepull.NewPuller(client, nil, e.store, imagepull.Options{Scratch: filepath.Join(e.root, "scratch")})
	t.Cleanup(func() {
		p.Close()
		client.Close()
	})
	if err := p.Sweep(); err != nil {
		t.Error(err)
	}
	return p
}

// bundles fails unless just these bundles are mounted, held and have a writable
// layer.
func (e *env) bundles(want ...string) {
	e.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.root))
	if err != nil {
		e.t.Fatal(err)
	}
	var mounted []string
	for _, m := range mounts {
		if m.Mountpoint != e.root {
			mounted = append(mounted, filepath.Dir(m.Mountpoint))
		}
	}
	slices.Sort(mounted)
	scratch, err := os.ReadDir(filepath.Join(e.root, "scratch"))
	if holders := e.store.Holders(); !slices.Equal(mounted, want) || !slices.Equal(holders, want) || len(scratch) != len(want) || err != nil {
		e.t.Errorf("want %v: mounted %v, held by %v, %d writable layers, %v", want, mounted, holders, len(scratch), err)
	}
}

// A bundle is told by what is there, not by what this process has done.
func TestBundleOfAnEarlierProcess(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil, nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
	other := e.registry.Push(t, "a/other:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	bundle, second := filepath.Join(e.root, "bundle"), filepath.Join(e.root, "second")
	pull := func(puller *imagepull.Puller, image imagetest.Pushed, bundle string) {
		t.Helper()
		if got, err := puller.PullImage(t.Context(), image.Reference, bundle); err != nil || got != image.Manifest.Digest {
			t.Errorf("got %s, %v", got, err)
		}
	}
	pull(e.puller, p, bundle)
	written := filepath.Join(bundle, "rootfs", "written")
	if err := os.WriteFile(written, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := e.restarted(t)
	pull(again, p, bundle)
	if _, err := os.Stat(written); err != nil {
		t.Error("a confirmed bundle was made anew")
	}
	if _, err := again.PullImage(t.Context(), other.Reference, bundle); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another image: %v", err)
	}
	e.bundles(bundle)

	held, err := os.Open(written)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.RemoveImage(t.Context(), bundle); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed while in use: %v", err)
	}
	e.bundles(bundle)
	pull(again, p, bundle)
	_ = held.Close()

	// Killed before config.json was there.
	if err := os.Remove(filepath.Join(bundle, "config.json")); err != nil {
		t.Fatal(err)
	}
	pull(e.restarted(t), p, bundle)
	if _, err := os.Stat(filepath.Join(bundle, "config.json")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(written); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a bundle was confirmed")
	}

	// Unmounted and deleted behind the puller's back, as kata-agent does.
	gone := func() {
		t.Helper()
		if err := errors.Join(unix.Unmount(filepath.Join(bundle, "rootfs"), 0), os.RemoveAll(bundle)); err != nil {
			t.Fatal(err)
		}
	}
	gone()
	pull(e.puller, p, bundle)
	e.bundles(bundle)
	gone()
	pull(e.puller, other, second)
	e.bundles(second)
	pull(e.puller, other, bundle)
	e.bundles(bundle, second)

	// It takes away nothing that it did not make.
	foreign := filepath.Join(e.root, "foreign")
	if err := errors.Join(os.Mkdir(foreign, 0o755), os.WriteFile(filepath.Join(foreign, "config.json"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, bundle := range []string{foreign, bundle, second, bundle} {
		if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
			t.Error(err)
		}
	}
	e.bundles()
	if _, err := os.Stat(filepath.Join(foreign, "config.json")); err != nil {
		t.Error(err)
	}
}

// Many callers make and remove one bundle at a time.
func TestBundleAtOnce(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil, nil)
	images := []imagetest.Pushed{
		e.registry.Push(t, "a/a:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}}),
		e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}}),
	}
	bundle := filepath.Join(e.root, "bundle")
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 10 {
				if _, err := e.puller.PullImage(t.Context(), images[i%2].Reference, bundle); err != nil && !errdefs.IsAlreadyExists(err) {
					t.Errorf("PullImage: %v", err)
				}
				if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
					t.Errorf("RemoveImage: %v", err)
				}
			}
		})
	}
	wg.Wait()
	e.bundles()
}

// The same layer twice in an image is two layers: what is between them does not
// shine through.
func TestRepeatedLayers(t *testing.T) {
	t.Parallel()
	e := newEnv(t, nil, nil)
	first := e.registry.Push(t, "a/first:v1", imagetest.Image{Layers: []imagetest.Layer{
		{Files: map[string]string{"changed": "a", "removed": "a", "dir/x": "a"}},
		{Files: map[string]string{"changed": "b", ".wh.removed": "", "dir/.wh..wh..opq": "", "dir/y": "b", "only": "b"}},
	}})
	a, b := imagetest.Layer{Tar: first.Layers[0].Tar}, imagetest.Layer{Tar: first.Layers[1].Tar, Compression: imagetest.Gzip}
	p := e.registry.Push(t, "a/aba:v1", imagetest.Image{Layers: []imagetest.Layer{a, b, a, b, a}})
	bundle := filepath.Join(e.root, "bundle")
	if _, err := e.puller.PullImage(t.Context(), p.Reference, bundle); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"changed": "a", "removed": "a", "dir/x": "a", "dir/y": "b", "only": "b"} {
		if got, err := os.ReadFile(filepath.Join(bundle, "rootfs", name)); string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if images := e.store.Images(); len(images) != 1 || len(images[0].Layers) != 5 || images[0].Size <= 0 || !images[0].InUse {
		t.Errorf("the store has %+v", images)
	}
	if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
		t.Error(err)
	}
}
