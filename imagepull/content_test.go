// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/metrics"
)

// archive makes a tar of headers; a file's content is its name.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Name
		}
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := errors.Join(w.WriteHeader(&h), writeString(w, content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeString(w *tar.Writer, s string) error {
	_, err := w.Write([]byte(s))
	return err
}

func regular(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }

func directory(name string, uid int, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Uid: uid, Mode: mode}
}

// again is a layer that has the very blob of another one in its repository.
func again(b imagetest.Built) imagetest.Layer {
	return imagetest.Layer{Tar: b.Tar, Edit: func(d *ocispec.Descriptor) { *d = b.Descriptor }}
}

// gets is how often the blobs of an image were asked for, each once if many of
// its layers have it.
func (e *env) gets(p imagetest.Pushed) map[string]int {
	n := make(map[string]int)
	for _, l := range p.Layers {
		n[l.Digest.String()] = len(e.registry.Requests(l.Digest.String()))
	}
	return n
}

func (e *env) fetchedOnce(p imagetest.Pushed) {
	e.t.Helper()
	for blob, n := range e.gets(p) {
		if n != 1 {
			e.t.Errorf("blob %s was fetched %d times", blob, n)
		}
	}
}

// TestRepeatedLayersAreFetchedOnce has a layer above itself, above others, and
// with directories that it does not list.
func TestRepeatedLayersAreFetchedOnce(t *testing.T) {
	t.Parallel()
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted=%v", encrypted), func(t *testing.T) {
			t.Parallel()
			key := imagetest.NewKey(t, kid)
			e := newEnv(t, newKeyring(key), nil)
			l := imagetest.Layer{Files: map[string]string{"a/b/c": "c", "d/.wh.x": ""}, Random: 300_000, Compression: imagetest.Gzip}
			if encrypted {
				l.Key = &key
			}
			first := e.registry.Push(t, "a/b:one", imagetest.Image{Layers: []imagetest.Layer{l}})
			a := again(first.Layers[0])
			p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, a, {}, a, a, {}, a}})
			if err := e.top(p); err != nil {
				t.Fatal(err)
			}
			e.fetchedOnce(p)
			layers := make([]string, len(p.Layers))
			for i, l := range p.Layers {
				layer, ok := e.store.Layer(l.ChainID)
				if !ok || layer.Encrypted != (encrypted && l.Digest == first.Layers[0].Digest) {
					t.Errorf("layer %d: %+v", i, layer)
				}
				layers[i] = listing(t, layer.Path)
			}
			for _, i := range []int{3, 4, 6} {
				if layers[i] != layers[1] {
					t.Errorf("layer %d has\n%s\nnot\n%s", i, layers[i], layers[1])
				}
			}
		})
	}
}

// listing is all that a copy must keep of a tree, but times.
func listing(t *testing.T, root string) string {
	t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %o %d:%d dev %d size %d\n", rel, st.Mode, st.Uid, st.Gid, st.Rdev, st.Size)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestImagesShareABlob pulls images side by side that have one blob above other
// layers each; their orders differ, so that none may wait for another's commit.
func TestImagesShareABlob(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.MaxUnpacks, o.MaxDownloads = 2, 3 })
	base := e.registry.Push(t, "a/b:base", imagetest.Image{Layers: make([]imagetest.Layer, 4)})
	var blobs []imagetest.Layer
	for _, l := range base.Layers {
		blobs = append(blobs, again(l))
	}
	var images []imagetest.Pushed
	for i := range 12 {
		layers := make([]imagetest.Layer, len(blobs))
		for k := range blobs { // every rotation, forwards and backwards
			layers[k] = blobs[(i+k)%len(blobs)]
			if i%2 == 1 {
				layers[k] = blobs[(i+len(blobs)-k)%len(blobs)]
			}
		}
		images = append(images, e.registry.Push(t, fmt.Sprintf("a/b:v%d", i), imagetest.Image{Layers: layers}))
	}
	var wg sync.WaitGroup
	for _, p := range images {
		wg.Go(func() {
			if err := e.top(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range images {
		e.has(p)
	}
	e.fetchedOnce(base)
	e.clean(base, len(base.Layers))
}

// TestLaterImageHasTheBlob pulls an image whose blob is in the store above other
// layers: unlisted directories are those of its own layers below.
func TestLaterImageHasTheBlob(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	shared := imagetest.Layer{Tar: archive(t, regular("srv/data/file"), tar.Header{Typeflag: tar.TypeLink, Name: "srv/data/same", Linkname: "srv/data/file"})}
	below := func(uid int, mode int64) imagetest.Layer {
		return imagetest.Layer{Tar: archive(t, directory("srv/", uid, mode), directory("srv/data/", uid+1, mode))}
	}
	for i, layers := range [][]imagetest.Layer{{below(11, 0o711), shared}, {below(22, 0o2755), shared}, {{Tar: archive(t)}, shared}, {shared}} {
		p := e.registry.Push(t, fmt.Sprintf("a/b:v%d", i), imagetest.Image{Layers: layers})
		if err := e.top(p); err != nil {
			t.Fatal(err)
		}
		layer, _ := e.store.Layer(p.Chain())
		fresh := newEnv(t, newKeyring(), nil)
		q := fresh.registry.Push(t, "a/b:v1", imagetest.Image{Layers: layers})
		if err := fresh.top(q); err != nil {
			t.Fatal(err)
		}
		want, _ := fresh.store.Layer(q.Chain())
		if got, want := listing(t, layer.Path), listing(t, want.Path); got != want {
			t.Errorf("image %d has\n%s\npulled alone it has\n%s", i, got, want)
		}
		if layer.Inodes != want.Inodes || layer.Size != want.Size {
			t.Errorf("image %d: %d inodes, %d bytes, want %d, %d", i, layer.Inodes, layer.Size, want.Inodes, want.Size)
		}
		if n := len(e.registry.Requests(p.Layers[len(p.Layers)-1].Digest.String())); n != 1 {
			t.Errorf("image %d: %d requests", i, n)
		}
	}
}

// TestRelocatedBlobIsFetchedAgain has a layer whose commit moved its files: they
// are not what the blob has, so that another image must not get them.
func TestRelocatedBlobIsFetchedAgain(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	link := imagetest.Layer{Tar: archive(t, directory("usr/", 0, 0o755), directory("usr/lib/", 0, 0o755), tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib"})}
	shared := imagetest.Layer{Tar: archive(t, regular("lib/file"))}
	moved := e.registry.Push(t, "a/b:moved", imagetest.Image{Layers: []imagetest.Layer{link, shared}})
	if err := e.top(moved); err != nil {
		t.Fatal(err)
	}
	plain := e.registry.Push(t, "a/b:plain", imagetest.Image{Layers: []imagetest.Layer{{}, shared}})
	if err := e.top(plain); err != nil {
		t.Fatal(err)
	}
	for image, name := range map[*imagetest.Pushed]string{&moved: "usr/lib/file", &plain: "lib/file"} {
		layer, _ := e.store.Layer(image.Chain())
		if b, err := os.ReadFile(filepath.Join(layer.Path, name)); err != nil || string(b) != "lib/file" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestRelocatedBlobIsSharedInTime has the same two images pulled side by side:
// the second one has its copy before the commit for the first one moves files.
func TestRelocatedBlobIsSharedInTime(t *testing.T) {
	t.Parallel()
	e := newEnvStall(t, newTmpfs(t, "64m"), 2*time.Second, newKeyring(), nil)
	link := imagetest.Layer{Tar: archive(t, directory("usr/", 0, 0o755), directory("usr/lib/", 0, 0o755), tar.Header{Typeflag: tar.TypeSymlink, Name: "lib", Linkname: "usr/lib"})}
	shared := imagetest.Layer{Tar: archive(t, regular("lib/file"))}
	moved := e.registry.Push(t, "a/b:moved", imagetest.Image{Layers: []imagetest.Layer{link, shared}})
	plain := e.registry.Push(t, "a/b:plain", imagetest.Image{Layers: []imagetest.Layer{{}, shared}})
	blob := moved.Layers[1].Digest.String()
	e.registry.Fail(blob, imagetest.Fault{Times: 1, Stall: true, After: 10})
	errs := make(chan error, 2)
	go func() { errs <- e.top(moved) }()
	<-e.registry.Began(blob)
	go func() { errs <- e.top(plain) }()
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Fatal(err)
	}
	for image, name := range map[*imagetest.Pushed]string{&moved: "usr/lib/file", &plain: "lib/file"} {
		layer, _ := e.store.Layer(image.Chain())
		if b, err := os.ReadFile(filepath.Join(layer.Path, name)); err != nil || string(b) != "lib/file" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if n := len(e.registry.Requests(blob)); n != 2 { // the one that stalled, and its rest
		t.Errorf("%d requests", n)
	}
}

// TestBlobOutlivesTheImageThatFetchedIt ends the pull that fetches a blob which
// another image waits for.
func TestBlobOutlivesTheImageThatFetchedIt(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	base := e.registry.Push(t, "a/b:base", imagetest.Image{Layers: []imagetest.Layer{{Random: 200_000}}})
	shared, blob := again(base.Layers[0]), base.Layers[0].Digest.String()
	first := e.registry.Push(t, "a/b:one", imagetest.Image{Layers: []imagetest.Layer{{}, shared}})
	second := e.registry.Push(t, "a/b:two", imagetest.Image{Layers: []imagetest.Layer{{}, shared}})
	e.registry.Fail(blob, imagetest.Fault{Times: 1, Stall: true, After: 1000})
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() { _, err := e.pull(ctx, first, first.Chain()); errs <- err }()
	<-e.registry.Began(blob)
	go func() { errs <- e.top(second) }()
	<-e.registry.Began(second.Layers[0].Digest.String())
	cancel()
	if err := errors.Join(<-errs, <-errs); !errors.Is(err, context.Canceled) || errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	e.has(second)
	e.clean(first, 1)
}

// TestSharedBlobFails has both images fail for a blob that is forged, and both
// succeed once it is not.
func TestSharedBlobFails(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	base := e.registry.Push(t, "a/b:base", imagetest.Image{Layers: []imagetest.Layer{{Random: 200_000}}})
	shared, forged := again(base.Layers[0]), base.Layers[0].Digest
	e.registry.Replace("a/b", forged, func(b []byte) []byte { b[1000] ^= 1; return b })
	images := []imagetest.Pushed{
		e.registry.Push(t, "a/b:one", imagetest.Image{Layers: []imagetest.Layer{{}, shared}}),
		e.registry.Push(t, "a/b:two", imagetest.Image{Layers: []imagetest.Layer{{}, shared, shared}}),
	}
	pull := func(check func(imagetest.Pushed, error)) {
		var wg sync.WaitGroup
		for _, p := range images {
			wg.Go(func() { check(p, e.top(p)) })
		}
		wg.Wait()
	}
	pull(func(p imagetest.Pushed, err error) {
		checkFailure(t, err, errdefs.IsDataLoss, imagepull.StageVerify, "layer "+forged.String()+" of "+p.Reference)
	})
	for _, p := range images {
		e.clean(p, 1)
	}
	e.registry.Replace("a/b", forged, nil)
	pull(func(p imagetest.Pushed, err error) {
		if err != nil {
			t.Error(err)
		}
		e.has(p)
	})
}

// TestRequestsOfConcurrentPulls counts all that the registry is asked for when an
// image is pulled three times at once: each layer once, and as many manifests
// and configs as there are names. (A config is a blob on the wire too.)
func TestRequestsOfConcurrentPulls(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), nil)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: make([]imagetest.Layer, 8)})
	names := []string{p.Reference, e.registry.Host() + "/a/b@" + p.Manifest.Digest.String(), e.registry.Host() + "/a/b:v1@" + p.Manifest.Digest.String()}
	var wg sync.WaitGroup
	for _, name := range names {
		for range 2 {
			wg.Go(func() {
				if _, _, _, err := e.puller.PullLayer(t.Context(), name, p.Manifest.Digest, p.Chain()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	e.fetchedOnce(p)
	if n := len(e.registry.Requests(p.ConfigDigest.String())); n < 1 || n > len(names) {
		t.Errorf("the config was asked for %d times", n)
	}
}

// TestLayerMissingInTheMiddle has layers that were removed from below others
// which stayed: what is on top waits for all that is below it, not only for its
// parent, which is there.
func TestLayerMissingInTheMiddle(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	unpacked := make(chan struct{})
	var top digest.Digest
	r, edit := recorded()
	e := newEnv(t, newKeyring(key), func(o *imagepull.Options) {
		edit(o)
		record := o.Progress
		o.Progress = func(ev imagepull.Event) {
			record(ev)
			if ev.Layer == top && line(ev) == "verify end" {
				close(unpacked) // it will be committed next
			}
		}
	})
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {Key: &key, Random: 1 << 20}, {}, {}}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	r.take() // a pull that is not at its end keeps its layers
	for _, i := range []int{1, 3} {
		if err := e.puller.RemoveLayer(t.Context(), p.Layers[i].ChainID); err != nil {
			t.Fatal(err)
		}
	}
	e.clean(imagetest.Pushed{Layers: []imagetest.Built{p.Layers[1], p.Layers[3]}}, 0)
	top = p.Chain()
	e.keys.hook = func(ctx context.Context, _ string) error {
		select {
		case <-unpacked:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
}

// TestCopyThatFailsIsNoFailedLayer has a layer that cannot be copied, since a
// path in it is longer than what a system call takes: it is fetched again, and
// no one hears of a layer that failed.
func TestCopyThatFailsIsNoFailedLayer(t *testing.T) {
	t.Parallel()
	r, edit := recorded()
	counted := metrics.New(metrics.Options{})
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) {
		edit(o)
		record := o.Progress
		o.Progress = func(ev imagepull.Event) { record(ev); counted.Observe(ev) }
	})
	var headers []tar.Header
	path := ""
	for range 20 {
		path += strings.Repeat("d", 199) + "/"
		headers = append(headers, directory(path, 0, 0o755))
	}
	headers = append(headers, regular(path+strings.Repeat("f", 90)))
	l := imagetest.Layer{Tar: archive(t, headers...)}
	first := e.registry.Push(t, "a/b:one", imagetest.Image{Layers: []imagetest.Layer{l}})
	a := again(first.Layers[0])
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{a, a}})
	if err := errors.Join(e.top(first), e.top(p)); err != nil {
		t.Fatal(err)
	}
	checkPairs(t, r.take())
	if n := len(e.registry.Requests(p.Layers[1].Digest.String())); n != 2 {
		t.Errorf("fetched %d times", n)
	}
	var b bytes.Buffer
	counted.Write(&b)
	if !containsAll(b.String(), `layers_total{result="failed"} 0`, `layers_total{result="fetched"} 2`) || strings.Contains(b.String(), "failures_total{") {
		t.Errorf("got\n%s", b.String())
	}
}
