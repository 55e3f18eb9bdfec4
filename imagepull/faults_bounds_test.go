// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

// TestFaultsTakeNoMemory offers much where little is expected, and counts all
// that this process allocates meanwhile, the registry included.
//
//nolint:paralleltest // other tests allocate too
func TestFaultsTakeNoMemory(t *testing.T) {
	const most = 48 << 20 // of what is allocated over the whole pull, garbage included
	for _, c := range imagetest.Faults("http://127.0.0.1:1") {
		large := func(f imagetest.Fault) bool { return f.Stream != nil || f.Raw != nil }
		if !slices.ContainsFunc(c.Faults, large) {
			continue
		}
		t.Run(c.String(), func(t *testing.T) { //nolint:paralleltest // as above
			r := imagetest.New(t)
			e, p := faultImage(t, r, c, false)
			c.Inflict(r, p)
			manifest := p.Manifest.Digest
			if c.On == imagetest.OnTag {
				manifest = ""
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := e.bounded(p, manifest)
			r.Settle()
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > most {
				t.Errorf("%d MiB were allocated, %v", n>>20, err)
			}
		})
	}
}

// TestMemoryOfManyLayers pulls an image of 100 layers, each larger than what
// may be held of it.
//
//nolint:paralleltest // it measures memory
func TestMemoryOfManyLayers(t *testing.T) {
	r := imagetest.New(t)
	e := newFaultEnv(t, r, newKeyring(), faultSetup{})
	layers := make([]imagetest.Layer, 100)
	for i := range layers {
		layers[i] = imagetest.Layer{Random: 200_000}
	}
	p := r.Push(t, "a/b:v1", imagetest.Image{Layers: layers})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := e.bounded(p, ""); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 4<<20 {
		t.Errorf("%d KiB are held after the pull", n>>10)
	}
	e.has(p)
}

// TestRedirectsCarryNoLogin has the registry send the puller to another server
// of the same machine, which sees the request but not the login.
func TestRedirectsCarryNoLogin(t *testing.T) {
	t.Parallel()
	for _, bearer := range []bool{false, true} {
		for _, on := range []imagetest.Target{imagetest.OnTag, imagetest.OnManifest, imagetest.OnConfig, imagetest.OnLayer} {
			t.Run(fmt.Sprintf("%s/bearer=%v", on, bearer), func(t *testing.T) {
				t.Parallel()
				r := imagetest.New(t)
				elsewhere := imagetest.NewMirror(t, r)
				e := newFaultEnv(t, r, newKeyring(), faultSetup{login: &imagetest.Login{User: "me", Password: "secret", Bearer: bearer}})
				p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}, {}}})
				r.Fail(p.Name(on), imagetest.Fault{Redirect: elsewhere.URL()})
				manifest := p.Manifest.Digest
				if on == imagetest.OnTag {
					manifest = ""
				}
				if err := e.bounded(p, manifest); err != nil {
					t.Fatal(err)
				}
				e.has(p)
				r.Settle()
				asked, sent := r.Requests(p.Name(on)), elsewhere.Requests(p.Name(on))
				if len(sent) != 1 || sent[0].Authorization != "" {
					t.Errorf("the other server got %+v", sent)
				}
				if asked[len(asked)-1].Authorization == "" {
					t.Errorf("the registry got no login: %+v", asked)
				}
			})
		}
	}
}

// TestRedirectWithoutTLS leads from a registry with TLS to a server without,
// where anybody could read a login.
func TestRedirectWithoutTLS(t *testing.T) {
	t.Parallel()
	r := imagetest.NewTLS(t)
	elsewhere := imagetest.NewMirror(t, r)
	e := newFaultEnv(t, r, newKeyring(), faultSetup{login: &imagetest.Login{User: "me", Password: "secret"}})
	p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}, {}}})
	on := p.Name(imagetest.OnLayer)
	r.Fail(on, imagetest.Fault{Redirect: elsewhere.URL()})
	err := e.bounded(p, "")
	elsewhere.Settle()
	for _, request := range elsewhere.Requests(on) {
		if request.Authorization != "" {
			t.Errorf("the login went over plain HTTP: %v", err)
		}
	}
	if err != nil { // refusing is as good
		checkFailure(t, err, errdefs.IsUnavailable, imagepull.StageFetch, on)
	}
}

// TestRedirectToAThief is a redirect to a server that asks for the login, and
// lies about the content when it gets none.
func TestRedirectToAThief(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	thief := imagetest.NewMirror(t, r)
	thief.RequireLogin(&imagetest.Login{User: "me", Password: "secret"})
	e := newFaultEnv(t, r, newKeyring(), faultSetup{login: &imagetest.Login{User: "me", Password: "secret"}})
	p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}, {}}})
	r.Fail(p.Name(imagetest.OnLayer), imagetest.Fault{Redirect: thief.URL()})
	if err := e.bounded(p, ""); err == nil {
		t.Error("the thief let the puller in, so it had the login")
	}
	thief.Settle()
	for _, request := range thief.Requests(p.Name(imagetest.OnLayer)) {
		t.Errorf("the thief accepted %+v", request)
	}
	e.clean(p, 1)
}

// TestCutsWithProgress cuts a layer over and over, each time further on: no
// number of cuts ends a pull that gets on, and each byte is served once.
func TestCutsWithProgress(t *testing.T) {
	t.Parallel()
	for _, keys := range [][]imagetest.Key{nil, {imagetest.NewKey(t, kid)}} {
		t.Run(fmt.Sprintf("encrypted=%v", keys != nil), func(t *testing.T) {
			t.Parallel()
			r := imagetest.New(t)
			e := newFaultEnv(t, r, newKeyring(keys...), faultSetup{})
			p := r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 8 << 20, Keys: keys}}})
			layer := p.Layers[0]
			r.Fail(layer.Digest.String(), imagetest.Fault{Cut: true, After: 1 << 20})
			if err := e.bounded(p, ""); err != nil {
				t.Fatal(err)
			}
			e.has(p)
			r.Settle()
			var served int64
			requests := r.Requests(layer.Digest.String())
			for _, request := range requests {
				served += request.Served
			}
			if len(requests) != 9 || served != layer.Size {
				t.Errorf("%d bytes in %d requests, the layer has %d", served, len(requests), layer.Size)
			}
		})
	}
}
