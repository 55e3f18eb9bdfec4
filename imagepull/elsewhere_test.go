// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// mirrored is a puller that asks a mirror first; also for the short name "app".
func mirrored(t *testing.T, keys *keyring, edit ...func(*imagepull.Options)) (e *env, mirror *imagetest.Registry) {
	t.Helper()
	root, r := newTmpfs(t, "64m"), imagetest.New(t)
	mirror = imagetest.NewMirror(t, r)
	config, err := conf.Parse(fmt.Appendf(nil, `
[[registry]]
location = %q
[[registry.mirror]]
location = %q
[aliases]
app = "%s/a/b"
`, r.Host(), mirror.Host(), r.Host()))
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.NewClient(registry.Options{Insecure: []string{r.Host(), mirror.Host()}, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	e = &env{t: t, registry: r, keys: keys, root: root}
	if e.store, err = store.Open(filepath.Join(root, "store"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	opts := imagepull.Options{RetryDelay: time.Millisecond, Scratch: filepath.Join(root, "scratch")}
	for _, f := range edit {
		f(&opts)
	}
	e.puller = imagepull.NewPuller(client, keys, e.store, opts)
	t.Cleanup(func() {
		e.puller.Close()
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, mirror
}

// A mirror that sends wrong bytes of the right size, or too many, costs the
// layer a second download and no more.
func TestMirrorSendsWrongBytes(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, "kbs:///default/key/1")
	for name, edit := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"longer":  func(b []byte) []byte { return append(b, b...) },
		"shorter": func(b []byte) []byte { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, mirror := mirrored(t, newKeyring(key))
			l := imagetest.Layer{Random: 1000, Compression: imagetest.Gzip, Key: &key}
			p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{l, l, l}})
			bad := p.Layers[1].Digest.String()
			mirror.Fail(bad, imagetest.Fault{Chunked: true, Edit: edit})
			if err := e.top(p); err != nil {
				t.Fatal(err)
			}
			e.has(p)
			e.clean(p, len(p.Layers))
			if n := len(mirror.Requests(bad)); n == 0 {
				t.Error("the mirror was not asked")
			}
			if n := len(e.registry.Requests(bad)); n != 1 {
				t.Errorf("the registry was asked %d times", n)
			}
		})
	}
}

// What is told of a layer that begins again is whole too, its key is asked for
// again, and its places are free afterwards.
func TestElsewhereIsTold(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, "kbs:///default/key/1")
	for _, spooled := range []bool{false, true} {
		t.Run(fmt.Sprintf("spooled=%v", spooled), func(t *testing.T) {
			t.Parallel()
			r, edit := recorded()
			e, mirror := mirrored(t, newKeyring(key), edit, func(o *imagepull.Options) {
				o.MaxDownloads, o.MaxUnpacks, o.VerifyBeforeUnpack = 1, 1, spooled
			})
			p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{
				{Random: 3 << 20, Compression: imagetest.Gzip, Key: &key}, {Random: 3 << 20, Compression: imagetest.Gzip},
			}})
			for _, l := range p.Layers {
				mirror.Fail(l.Digest.String(), imagetest.Fault{Edit: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }})
			}
			if err := e.top(p); err != nil {
				t.Fatal(err)
			}
			events := r.take()
			checkPairs(t, events)
			retried := 0
			for _, ev := range events {
				if line(ev) == "fetch retry" {
					retried++
				}
				if ev.State == progress.End && ev.Err != nil && !errors.Is(ev.Err, progress.ErrAborted) {
					t.Errorf("got %+v", ev)
				}
			}
			if retried != 2 || e.keys.count() != 2 {
				t.Errorf("%d retries, %d keys", retried, e.keys.count())
			}
			e.puller.Close()
			if left := e.puller.Rest(); left != "" {
				t.Error(left)
			}
			e.has(p)
			e.clean(p, len(p.Layers))
		})
	}
}

// Where no place has the right bytes, the error is of the bytes.
func TestWrongBytesEverywhere(t *testing.T) {
	t.Parallel()
	e, mirror := mirrored(t, newKeyring())
	p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{{Random: 1000}}})
	flip := imagetest.Fault{Edit: func(b []byte) []byte { b[len(b)/2] ^= 1; return b }}
	mirror.Fail(p.Layers[0].Digest.String(), flip)
	e.registry.Fail(p.Layers[0].Digest.String(), flip)
	if err := e.top(p); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "do not trust") {
		t.Errorf("got error %v, want data loss", err)
	}
	e.clean(p, 0)
}

// A short name is what the configuration makes of it.
func TestShortName(t *testing.T) {
	t.Parallel()
	e, _ := mirrored(t, newKeyring())
	p := e.registry.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{{Random: 1000}}})
	if _, _, _, err := e.puller.PullLayer(t.Context(), "app:1", "", p.Chain()); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(e.root, "bundle")
	if _, err := e.puller.PullImage(t.Context(), "app:1", bundle); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
			t.Error(err)
		}
	}()
	images := e.store.Images()
	if len(images) != 1 || len(images[0].References) != 1 || images[0].References[0] != e.registry.Host()+"/a/b:1" {
		t.Errorf("recorded: %+v", images)
	}
}
