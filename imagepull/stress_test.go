// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

const (
	stressTime  = 500 * time.Millisecond // of one set of limits
	stressUsers = 10
)

// TestStress has many callers ask for images that have the same few blobs in
// every order, give up at any moment, and remove what the others pull, while the
// registry cuts connections and there is next to no place. Nothing may hang, and
// nothing may be left of it.
func TestStress(t *testing.T) {
	t.Parallel()
	for _, opts := range []imagepull.Options{
		{MaxDownloads: 1, MaxUnpacks: 1},
		{MaxDownloads: 1, MaxUnpacks: 2},
		{MaxDownloads: 2, MaxUnpacks: 1, VerifyBeforeUnpack: true},
		{MaxDownloads: 2, MaxDownloadsPerImage: 2, MaxUnpacks: 2, MaxUnpacksPerImage: 1},
	} {
		name := fmt.Sprintf("downloads=%d/unpacks=%d/spooled=%v", opts.MaxDownloads, opts.MaxUnpacks, opts.VerifyBeforeUnpack)
		t.Run(name, func(t *testing.T) {
			key := imagetest.NewKey(t, kid)
			kept := store.Options{Unclaimed: time.Millisecond, MaxAge: 2 * time.Millisecond, MaxBytes: 2 << 20}
			e := newEnvStore(t, newTmpfs(t, "256m"), shortStall, kept, newKeyring(key), func(o *imagepull.Options) {
				opts.RetryDelay, opts.Scratch, opts.Tries = o.RetryDelay, o.Scratch, 3
				*o = opts
			})
			images := stressImages(t, e, key)
			for _, p := range images {
				for _, l := range p.Layers {
					e.registry.Fail(l.Digest.String(), imagetest.Fault{Skip: 1, Times: 1, Cut: true, After: 500})
					e.registry.Fail(l.Digest.String(), imagetest.Fault{Skip: 3, Times: 3, Status: 500})
				}
			}
			stress(t, e, images)
			e.registry.Heal()
			e.atRest(t, images)
		})
	}
}

// stressImages are images of few blobs: forwards, backwards, and one again and
// again.
func stressImages(t *testing.T, e *env, key imagetest.Key) []imagetest.Pushed {
	t.Helper()
	var layers []imagetest.Layer
	for i := range 5 {
		l := imagetest.Layer{Files: make(map[string]string), Random: 20_000, Compression: imagetest.Gzip}
		for n := range 30 { // so that a copy takes a while
			l.Files[fmt.Sprintf("d/%d/%d", i, n)] = "x"
		}
		if i%2 == 0 {
			l.Key = &key
		}
		layers = append(layers, l)
	}
	all := e.registry.Push(t, "a/b:all", imagetest.Image{Layers: layers})
	var images []imagetest.Pushed
	for n, order := range [][]int{
		{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {0, 1, 0}, {1, 0, 1, 0, 1}, {2, 2, 2, 2}, {0, 1, 2, 4}, {3, 0, 4}, {4, 0, 3},
	} {
		var image imagetest.Image
		for _, i := range order {
			image.Layers = append(image.Layers, again(all.Layers[i]))
		}
		images = append(images, e.registry.Push(t, fmt.Sprintf("a/b:v%d", n), image))
	}
	return images
}

// stress lets callers do what they may for a while.
func stress(t *testing.T, e *env, images []imagetest.Pushed) {
	t.Helper()
	until := time.Now().Add(stressTime)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range stressUsers {
		wg.Go(func() {
			for time.Now().Before(until) {
				stressOne(ctx, t, e, images[rand.IntN(len(images))])
			}
		})
	}
	wg.Wait()
}

// stressOne does one thing with an image. Whatever becomes of it, it is no
// fault of the puller's own.
func stressOne(all context.Context, t *testing.T, e *env, p imagetest.Pushed) {
	ctx, cancel := context.WithCancel(all)
	defer cancel()
	if rand.IntN(3) > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(20_000))*time.Microsecond)
		defer cancel()
	}
	chainID := p.Layers[rand.IntN(len(p.Layers))].ChainID
	bundle := filepath.Join(e.root, fmt.Sprintf("bundle%d", rand.IntN(3)))
	var err error
	allowed := func(error) bool { return false }
	switch rand.IntN(10) {
	case 0, 1:
		_, err = e.puller.PullImage(ctx, p.Reference, bundle)
		allowed = errdefs.IsAlreadyExists // with another image
	case 2, 3:
		err = e.puller.RemoveImage(ctx, bundle)
	case 4, 5:
		err = e.puller.RemoveLayer(ctx, chainID)
		allowed = errdefs.IsFailedPrecondition // it is held, or being read
	case 6:
		_, err = e.puller.GC(ctx)
	default:
		_, err = e.pull(ctx, p, chainID)
	}
	var answer *registry.Error
	switch {
	case all.Err() != nil:
		t.Errorf("a caller hung: %v", err)
	case err == nil, ctx.Err() != nil, allowed(err), errors.As(err, &answer):
	case errdefs.IsResourceExhausted(err): // all is in use
	default:
		t.Error(err)
	}
}

// atRest fails where something is left of what went on, and pulls once more.
func (e *env) atRest(t *testing.T, images []imagetest.Pushed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for n := range 3 {
		if err := e.puller.RemoveImage(ctx, filepath.Join(e.root, fmt.Sprintf("bundle%d", n))); err != nil {
			t.Error(err)
		}
	}
	if left := e.store.Holders(); len(left) > 0 {
		t.Errorf("still held by %v", left)
	}
	if left, err := os.ReadDir(filepath.Join(e.root, "scratch")); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		t.Errorf("writable layers are left: %v %v", left, err)
	}
	for _, p := range images {
		for i, l := range p.Layers {
			if layer, ok := e.store.Layer(l.ChainID); ok {
				e.hasFiles(i, l, layer.Path)
			}
		}
	}
	for _, p := range images {
		for _, l := range p.Layers {
			if err := e.puller.RemoveLayer(ctx, l.ChainID); err != nil {
				t.Error(err)
			}
		}
	}
	for _, p := range images {
		if _, err := e.pull(ctx, p, p.Chain()); err != nil {
			t.Error(err)
		}
		e.has(p)
		e.checkFacts(t, p)
		for _, l := range p.Layers {
			if err := e.puller.RemoveLayer(ctx, l.ChainID); err != nil {
				t.Error(err)
			}
		}
	}
	e.puller.Close()
	if left := e.puller.Rest(); left != "" {
		t.Error(left)
	}
	e.clean(images[0], len(images[0].Layers))
}

// checkFacts fails where layers of one blob, which are copies of one another,
// are said to differ.
func (e *env) checkFacts(t *testing.T, p imagetest.Pushed) {
	t.Helper()
	facts := make(map[digest.Digest]store.LayerMeta)
	for _, l := range p.Layers {
		layer, _ := e.store.Layer(l.ChainID)
		got := store.LayerMeta{Blob: layer.Blob, DiffID: layer.DiffID, Size: layer.Size, Inodes: layer.Inodes, Encrypted: layer.Encrypted}
		if want, again := facts[l.Digest]; again && got != want {
			t.Errorf("a layer has %+v, its copy %+v", want, got)
		}
		facts[l.Digest] = got
	}
}
