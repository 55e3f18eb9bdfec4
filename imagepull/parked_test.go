// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// A lastBlob is a registry that gives nothing of one blob before as many layers
// are verified as the image has others.
type lastBlob struct {
	*registry.Client
	blob digest.Digest
	open chan struct{}

	mu     sync.Mutex
	others int // guarded by mu
}

func (l *lastBlob) Fetch(ctx context.Context, ref string, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if desc.Digest == l.blob {
		select {
		case <-l.open:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return l.Client.Fetch(ctx, ref, desc, offset)
}

func (l *lastBlob) observe(ev imagepull.Event) {
	if line(ev) != "verify end" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.others--; l.others == 0 {
		close(l.open)
	}
}

// restart ends puller and store and makes new ones. With a last blob, that comes
// last.
func (e *env) restart(last *lastBlob, edit func(*imagepull.Options)) {
	e.t.Helper()
	e.puller.Close()
	if err := e.store.Close(); err != nil {
		e.t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{Insecure: []string{e.registry.Host()}, StallTimeout: shortStall})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(client.Close)
	if e.store, err = store.Open(filepath.Join(e.root, "store"), e.kept); err != nil {
		e.t.Fatal(err)
	}
	opts := imagepull.Options{Tries: 4, RetryDelay: 1, Scratch: filepath.Join(e.root, "scratch")}
	var from imagepull.Registry = client
	if last != nil {
		last.Client, from, opts.Progress = client, last, last.observe
	}
	if edit != nil {
		edit(&opts)
	}
	e.puller = imagepull.NewPuller(from, e.keys, e.store, opts)
}

// lowestLast has the lowest layer of an image come after all others.
func (e *env) lowestLast(p imagetest.Pushed, edit func(*imagepull.Options)) {
	e.t.Helper()
	e.restart(&lastBlob{blob: p.Layers[0].Digest, open: make(chan struct{}), others: len(p.Layers) - 1}, edit)
}

// parked fails unless the store has so many parked layers, and nothing else that
// is not committed.
func (e *env) parked(want int) {
	e.t.Helper()
	dirs, err := os.ReadDir(filepath.Join(e.root, "store", "parked"))
	u, usageErr := e.store.Usage()
	if len(dirs) != want || u.Parked != want || err != nil || usageErr != nil {
		e.t.Errorf("%d layers are parked, %d on disk, want %d: %v, %v", u.Parked, len(dirs), want, err, usageErr)
	}
}

// fourLayers is an image with directories that only its lowest layer lists.
func fourLayers(t *testing.T, encrypted bool) (*env, imagetest.Pushed) {
	t.Helper()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	layers := make([]imagetest.Layer, 4)
	for i := range layers {
		files := []tar.Header{directory("srv/", 11, 0o711), directory("srv/data/", 12, 0o2755)}
		if i > 0 {
			files = []tar.Header{regular(fmt.Sprintf("srv/data/%d", i))}
		}
		layers[i] = imagetest.Layer{Tar: archive(t, files...), Compression: imagetest.Gzip}
		if encrypted {
			layers[i].Key = &key
		}
	}
	return e, e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: layers})
}

// TestFinishedLayersSurvive lets the lowest layer fail for good when all others
// are done. Once it is mended, nothing else is fetched, and no key but its own is
// asked for.
func TestFinishedLayersSurvive(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault imagetest.Fault
		edit  func([]byte) []byte
		class func(error) bool
		stage imagepull.Stage
	}{
		"gone":    {imagetest.Fault{Status: 404}, nil, errdefs.IsNotFound, imagepull.StageFetch},
		"away":    {imagetest.Fault{Status: 503}, nil, errdefs.IsUnavailable, imagepull.StageFetch},
		"corrupt": {imagetest.Fault{}, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, errdefs.IsDataLoss, imagepull.StageVerify},
	} {
		for _, encrypted := range []bool{false, true} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/encrypted=%v/restart=%v", name, encrypted, restart), func(t *testing.T) {
					t.Parallel()
					log := &lines{}
					e, p := fourLayers(t, encrypted)
					e.lowestLast(p, func(o *imagepull.Options) { o.Logger = slog.New(slog.NewTextHandler(log, nil)) })
					lowest := p.Layers[0].Digest
					e.registry.Fail(lowest.String(), tc.fault)
					e.registry.Replace("a/b", lowest, tc.edit)
					checkFailure(t, e.top(p), tc.class, tc.stage, lowest.String()+" of "+p.Reference)
					e.clean(p, 0)
					e.parked(3)
					if n := log.with("parked for the next pull", "level=INFO", "image="+p.Reference, "stage=commit"); n != 3 {
						t.Errorf("%d lines of parked layers", n)
					}
					failed, keys := len(e.registry.Requests(lowest.String())), e.keys.count()
					e.registry.Heal()
					e.registry.Replace("a/b", lowest, nil)
					if restart {
						e.restart(nil, nil)
						e.parked(3)
					}
					if err := e.top(p); err != nil {
						t.Fatal(err)
					}
					e.has(p)
					e.parked(0)
					for i, want := range []int{failed + 1, 1, 1, 1} {
						if n := len(e.registry.Requests(p.Layers[i].Digest.String())); n != want {
							t.Errorf("layer %d: %d requests, want %d", i, n, want)
						}
					}
					if n := e.keys.count() - keys; encrypted && n != 1 || !encrypted && n != 0 {
						t.Errorf("%d keys were asked for", n)
					}
					e.isAsPulledAtOnce(p)
				})
			}
		}
	}
}

// isAsPulledAtOnce compares all layers, and what is known of them, with those of
// a pull that nothing disturbs.
func (e *env) isAsPulledAtOnce(p imagetest.Pushed) {
	e.t.Helper()
	got := make([]string, len(p.Layers))
	metas := make([]store.LayerMeta, len(p.Layers))
	for i, l := range p.Layers {
		layer, _ := e.store.Layer(l.ChainID)
		got[i], metas[i] = listing(e.t, layer.Path), layer.LayerMeta
	}
	e.puller.Close()
	for _, l := range slices.Backward(p.Layers) {
		if err := e.store.Remove(l.ChainID); err != nil {
			e.t.Fatal(err)
		}
	}
	e.restart(nil, nil)
	if err := e.top(p); err != nil {
		e.t.Fatal(err)
	}
	for i, l := range p.Layers {
		layer, _ := e.store.Layer(l.ChainID)
		if want := listing(e.t, layer.Path); got[i] != want || metas[i] != layer.LayerMeta {
			e.t.Errorf("layer %d is %+v and has\n%s\nnot %+v and\n%s", i, metas[i], got[i], layer.LayerMeta, want)
		}
	}
}

// TestParkedIsCached has the events of layers that were parked: nothing is
// fetched or unpacked for them.
func TestParkedIsCached(t *testing.T) {
	t.Parallel()
	e, p := fourLayers(t, true)
	e.lowestLast(p, nil)
	e.registry.Fail(p.Layers[0].Digest.String(), imagetest.Fault{Status: 404})
	if err := e.top(p); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	e.registry.Heal()
	r, edit := recorded()
	e.restart(nil, edit)
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	events := r.take()
	checkPairs(t, events)
	cached := 0
	for _, ev := range events {
		switch {
		case ev.Layer == "" || ev.Layer == p.Layers[0].ChainID:
		case ev.Stage != imagepull.StageCommit:
			t.Errorf("got %s of a parked layer", line(ev))
		case line(ev) == "commit end" && ev.Cached && ev.Unpacked > 0:
			cached++
		}
	}
	if cached != 3 {
		t.Errorf("%d layers are cached", cached)
	}
}

// TestParkedIsTakenByAnyPull ends a pull by its caller, and the puller by Close,
// and has other images want what is done, side by side.
func TestParkedIsTakenByAnyPull(t *testing.T) {
	t.Parallel()
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed=%v", closed), func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, newKeyring(), nil)
			base := e.registry.Push(t, "a/b:base", imagetest.Image{Layers: []imagetest.Layer{{Random: 100_000}}})
			shared, blob := again(base.Layers[0]), base.Layers[0].Digest.String()
			first := e.registry.Push(t, "a/b:one", imagetest.Image{Layers: []imagetest.Layer{{}, shared, shared, {}}})
			last := &lastBlob{blob: first.Layers[0].Digest, open: make(chan struct{}), others: 2} // the copy is not verified
			e.restart(last, nil)
			e.registry.Fail(first.Layers[0].Digest.String(), imagetest.Fault{Stall: true})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			errs := make(chan error)
			go func() { _, err := e.pull(ctx, first, first.Chain()); errs <- err }()
			<-last.open
			if closed {
				e.puller.Close()
			} else {
				cancel()
			}
			if err := <-errs; err == nil {
				t.Fatal("the pull did not end")
			}
			e.parked(2)
			e.restart(nil, nil)
			e.parked(2)
			var wg sync.WaitGroup
			for i := range 4 {
				p := e.registry.Push(t, fmt.Sprintf("a/b:v%d", i), imagetest.Image{Layers: []imagetest.Layer{{}, shared, {}, shared}})
				wg.Go(func() {
					if err := e.top(p); err != nil {
						t.Error(err)
					}
					e.has(p)
				})
			}
			wg.Wait()
			e.parked(1) // what only the first image has
			if n := len(e.registry.Requests(blob)); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestParkedAndTampered takes parts of parked layers away, before a restart or
// without one: they are fetched again, and what was left of them goes.
func TestParkedAndTampered(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			t.Parallel()
			e, p := fourLayers(t, true)
			e.lowestLast(p, nil)
			e.registry.Fail(p.Layers[0].Digest.String(), imagetest.Fault{Status: 404})
			if err := e.top(p); !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
			e.parked(3)
			dirs, err := filepath.Glob(filepath.Join(e.root, "store", "parked", "*"))
			if err != nil || len(dirs) != 3 {
				t.Fatal(dirs, err)
			}
			err = errors.Join(os.Remove(filepath.Join(dirs[0], "parked.json")), os.Truncate(filepath.Join(dirs[1], "parked.json"), 20), os.RemoveAll(filepath.Join(dirs[2], "fs")))
			if err != nil {
				t.Fatal(err)
			}
			e.registry.Heal()
			if restart {
				e.restart(nil, nil)
				e.parked(0)
			}
			if err := e.top(p); err != nil {
				t.Fatal(err)
			}
			e.has(p)
			e.parked(0)
			for i, l := range p.Layers {
				if n := len(e.registry.Requests(l.Digest.String())); n != 2 {
					t.Errorf("layer %d: %d requests", i, n)
				}
			}
		})
	}
}

// TestNoRoomToPark fills the disk when a layer is verified that cannot be
// committed yet. The pull fails for its own reason, and leaves nothing.
func TestNoRoomToPark(t *testing.T) {
	t.Parallel()
	e, p := fourLayers(t, false)
	log, full := &lines{}, filepath.Join(e.root, "full")
	last := &lastBlob{blob: p.Layers[0].Digest, open: make(chan struct{}), others: 3}
	e.restart(last, func(o *imagepull.Options) {
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
		o.Progress = func(ev imagepull.Event) {
			if line(ev) == "verify end" {
				// More than there is left when the last one of them is done.
				if err := os.WriteFile(full, nil, 0o600); err == nil && last.left() == 1 {
					err = fill(full)
					if !errors.Is(err, unix.ENOSPC) {
						t.Error(err)
					}
				}
			}
			last.observe(ev)
		}
	})
	e.registry.Fail(p.Layers[0].Digest.String(), imagetest.Fault{Status: 404})
	checkFailure(t, e.top(p), errdefs.IsNotFound, imagepull.StageFetch, p.Layers[0].Digest.String())
	if log.with("is not parked", "level=WARN", "out of space") == 0 {
		t.Error("no line of a layer that is not parked")
	}
	e.clean(p, 0)
	e.parked(3 - log.with("is not parked"))
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	e.registry.Heal()
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	e.parked(0)
}

// TestParkedIsReservedFor has a store that has no room for what is parked a second
// time: the pull that wants it is let in, and what it wants stays.
func TestParkedIsReservedFor(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	l := imagetest.Layer{Random: 100_000}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{l, l, l, l}})
	e.lowestLast(p, nil)
	e.registry.Fail(p.Layers[0].Digest.String(), imagetest.Fault{Status: 404})
	if err := e.top(p); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	e.registry.Heal()
	e.kept.MaxBytes = 500_000
	e.restart(nil, nil)
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{2, 1, 1, 1} {
		if n := len(e.registry.Requests(p.Layers[i].Digest.String())); n != want {
			t.Errorf("layer %d: %d requests", i, n)
		}
	}
}

// TestFailedCommitIsNotParked has a layer that does not fit to the one below it.
// Its commit may have changed it, so that it must not be taken for another image.
func TestFailedCommitIsNotParked(t *testing.T) {
	t.Parallel()
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("waits=%v", waits), func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, newKeyring(), nil)
			link := imagetest.Layer{Tar: archive(t, regular("file"), tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "file"})}
			p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{link, {Tar: archive(t, regular("lib/file"))}}})
			if waits {
				e.lowestLast(p, nil)
			} else if _, err := e.pull(t.Context(), e.registry.Push(t, "a/b:below", imagetest.Image{Layers: []imagetest.Layer{link}}), p.Layers[0].ChainID); err != nil {
				t.Fatal(err)
			}
			checkFailure(t, e.top(p), errdefs.IsInvalidArgument, imagepull.StageCommit, "lib is a link")
			e.clean(p, 1)
			e.parked(0)
		})
	}
}

func (l *lastBlob) left() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.others
}

func fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for err == nil || len(b) > 1 {
		if err != nil {
			b = b[:len(b)/2]
		}
		_, err = f.Write(b)
	}
	return errors.Join(err, f.Close())
}

// TestNothingIsParkedForWantOfSpace has an image that does not fit: what it has
// must not stay in the way of others.
func TestNothingIsParkedForWantOfSpace(t *testing.T) {
	t.Parallel()
	e := newEnvAt(t, newTmpfs(t, "4m"), newKeyring(), nil)
	large := imagetest.Layer{Files: map[string]string{"file": strings.Repeat("large", 1<<20)}, Compression: imagetest.Gzip}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{large, {}, {}}})
	e.lowestLast(p, nil)
	checkFailure(t, e.top(p), errdefs.IsResourceExhausted, imagepull.StageApply, p.Layers[0].Digest.String())
	e.clean(p, 0)
	e.parked(0)
}
