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

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
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
