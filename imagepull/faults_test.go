// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

// faultOutcomes says what comes of each fault of the table, by the name of the
// case or, where the target matters, by its String.
func faultOutcomes() map[string]outcome {
	loss, invalid, unknown := errdefs.ErrDataLoss, errdefs.ErrInvalidArgument, errdefs.ErrUnknown
	verify := imagepull.StageVerify
	return map[string]outcome{
		"400":                             bad(unknown, 1, "400 Bad Request"),
		"401":                             bad(errdefs.ErrUnauthenticated, 1, "credentials"),
		"403":                             bad(errdefs.ErrPermissionDenied, 1, "credentials"),
		"404":                             bad(errdefs.ErrNotFound, 1, "not there"),
		"418":                             bad(unknown, 1, "is this an OCI registry?"),
		"204":                             bad(unknown, 1).or(loss).or(invalid),
		"429 once":                        good(2),
		"429 for an hour":                 bad(errdefs.ErrUnavailable, 1, "it asks to wait 1h0m0s"),
		"429 for a time nobody can read":  good(2),
		"429 for longer than time goes":   good(2),
		"500":                             away("500 Internal Server Error"),
		"503 once":                        good(2),
		"503 with a large text":           away("503 Service Unavailable"),
		"cut before the header, once":     good(2),
		"cut before the first byte, once": good(2),
		"cut, once":                       good(2),
		"cut":                             away(),
		"stall, once":                     good(2),
		"stall":                           away("no byte came for 200ms"),
		"no answer, once":                 good(2),
		"no answer":                       away("200ms"),

		"not HTTP":                          away("check that the registry runs"),
		"a header without end":              away(),
		"informational answers without end": away(),
		"redirect to itself":                away("redirects"),
		"redirect to nowhere":               bad(unknown, 1).or(loss).or(invalid),
		"redirect to a file":                away(),
		"redirect elsewhere":                good(1),
		"length too large":                  bad(loss, 1),
		"length too small":                  bad(loss, 1),
		"tag: length too large":             away(),
		"manifest: length too large":        away(),
		"config: length too large":          away(),
		"tag: length too small":             bad(invalid, 1, "not JSON"),
		"gzip that is none":                 good(1),
		"another digest in the header":      good(1),

		"100 MB":                     bad(invalid, 1, "larger than 4 MiB").or(loss),
		"100 MB, announced":          bad(invalid, 1, "larger than 4 MiB").or(loss),
		"100 MB of blanks":           bad(invalid, 1, "larger than 4 MiB").or(loss),
		"nothing":                    bad(loss, 1),
		"tag: nothing":               bad(invalid, 1, "not JSON"),
		"a page of HTML":             bad(loss, 1),
		"tag: a page of HTML":        bad(invalid, 1, "not JSON"),
		"nested too deeply":          bad(loss, 1),
		"tag: nested too deeply":     bad(invalid, 1, "not JSON"),
		"the first half":             bad(loss, 1),
		"tag: the first half":        bad(invalid, 1, "not JSON"),
		"one bit":                    bad(loss, 1, "do not trust this registry"),
		"a blank more":               bad(loss, 1),
		"text as its type":           good(1),
		"no type":                    good(1),
		"layer: a page of HTML":      bad(loss, 2, "has fewer than"),
		"layer: nothing":             bad(loss, 2, "has only 0 of the"),
		"layer: the first half":      bad(loss, 1, "push the image again"),
		"first bit":                  bad(loss, 1, "do not trust this registry").at(verify),
		"middle bit":                 bad(loss, 1, "do not trust this registry").at(verify),
		"last bit":                   bad(loss, 1, "do not trust this registry").at(verify),
		"a part repeated":            bad(loss, 1, "do not trust this registry").at(verify),
		"a part twice":               bad(loss, 1, "push the image again"),
		"a part twice, no length":    bad(loss, 1, "sends more than"),
		"parts in another order":     bad(loss, 1, "do not trust this registry").at(verify),
		"zeros":                      bad(loss, 1, "do not trust this registry").at(verify),
		"the first half, no length":  bad(loss, 2, "has fewer than"),
		"no end":                     bad(loss, 1, "sends more than"),
		"cut at the last byte, once": good(2),

		"range ignored":               good(2),
		"range ignored, no length":    good(2),
		"range refused":               bad(loss, 2, "fewer than"),
		"another range":               bad(loss, 2, "asked from byte"),
		"range without a name":        bad(loss, 2, "asked from byte"),
		"other bytes for the range":   bad(loss, 2).at(verify),
		"another blob for the range":  bad(loss, 2).at(verify),
		"range of more than there is": bad(loss, 2),
		"half of it, not asked for":   bad(loss, 1, "asked from byte 0"),

		"token: 401":                bad(errdefs.ErrUnauthenticated, 0, "credentials"),
		"token: 500":                away("500"),
		"token: 503 once":           good(0),
		"token: 100 MB":             bad(errdefs.ErrUnavailable, 0),
		"token: 100 MB header":      away(),
		"token: no JSON":            bad(errdefs.ErrUnavailable, 0),
		"token: no token":           bad(errdefs.ErrUnavailable, 0).or(errdefs.ErrUnauthenticated),
		"token: another token":      bad(errdefs.ErrUnauthenticated, 0, "credentials"),
		"token: cut, once":          good(0),
		"token: stall, once":        good(0),
		"token: stall":              away("200ms"),
		"token: no answer, once":    good(0),
		"token: redirect to itself": away("redirects"),
	}
}

// TestFaults makes a registry fail in every way of the table, for plain and
// encrypted images, and then heals it.
func TestFaults(t *testing.T) {
	t.Parallel()
	elsewhere := imagetest.New(t) // replaced for each case by one that has the image
	outcomes, used := faultOutcomes(), make(map[string]bool)
	for _, c := range imagetest.Faults(elsewhere.URL()) {
		name := c.String()
		if _, ok := outcomes[name]; !ok {
			name = c.Name
		}
		want, ok := outcomes[name]
		if !ok {
			t.Errorf("nobody says what is to come of %q", c)
		}
		used[name] = true
		for _, encrypted := range []bool{false, true} {
			if encrypted && c.On != imagetest.OnLayer {
				continue // documents are not encrypted
			}
			t.Run(fmt.Sprintf("%s/encrypted=%v", c, encrypted), func(t *testing.T) {
				t.Parallel()
				testFault(t, c, want, encrypted)
			})
		}
	}
	for name := range outcomes {
		if !used[name] {
			t.Errorf("no fault is called %q", name)
		}
	}
}

func testFault(t *testing.T, c imagetest.Case, want outcome, encrypted bool) {
	t.Helper()
	r := imagetest.New(t)
	e, p := faultImage(t, r, c, encrypted)
	for i, f := range c.Faults {
		if f.Redirect != "" && c.Name == "redirect elsewhere" {
			c.Faults[i].Redirect = imagetest.NewMirror(t, r).URL()
		}
	}
	c.Inflict(r, p)
	manifest := p.Manifest.Digest
	if c.On == imagetest.OnTag {
		manifest = ""
	}
	about, stage := p.Name(c.On), imagepull.StageResolve
	switch c.On {
	case imagetest.OnTag:
		about = ":" + about
	case imagetest.OnToken:
		about = manifest.String()
	case imagetest.OnLayer:
		stage = imagepull.StageFetch
	}
	err := e.bounded(p, manifest)
	want.check(t, err, stage, about)
	r.Settle()
	requests := r.Requests(p.Name(c.On))
	if n := len(requests); want.tries > 0 && (n < want.tries || n > want.tries && !stands(c)) && c.Name != "redirect to itself" {
		t.Errorf("%d requests, want %d", n, want.tries)
	}
	checkServed(t, c, p, requests, err == nil)
	if err != nil {
		from := 0
		if c.On == imagetest.OnLayer {
			from = len(p.Layers) / 2
		}
		e.clean(p, from)
		r.Heal()
		if err := e.bounded(p, manifest); err != nil {
			t.Fatalf("after the fault was gone: %v", err)
		}
	}
	e.has(p)
	e.clean(p, len(p.Layers))
}

// faultImage is a puller and an image of three layers, the middle one of which
// has 300 kB.
func faultImage(t *testing.T, r *imagetest.Registry, c imagetest.Case, encrypted bool) (*env, imagetest.Pushed) {
	t.Helper()
	setup := faultSetup{stalls: stands(c)}
	if c.On == imagetest.OnToken {
		setup.login = &imagetest.Login{User: "me", Password: "secret", Bearer: true}
	}
	var keys []imagetest.Key
	if encrypted {
		keys = []imagetest.Key{imagetest.NewKey(t, kid)}
	}
	e := newFaultEnv(t, r, newKeyring(keys...), setup)
	small, large := imagetest.Layer{Random: 1000, Keys: keys}, imagetest.Layer{Random: 300_000, Compression: imagetest.Gzip, Keys: keys}
	return e, r.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{small, large, small}})
}

// stands reports whether the registry stands still.
func stands(c imagetest.Case) bool {
	return slices.ContainsFunc(c.Faults, func(f imagetest.Fault) bool { return f.Stall || f.Mute })
}

// checkServed bounds what a registry can make the puller read.
func checkServed(t *testing.T, c imagetest.Case, p imagetest.Pushed, requests []imagetest.Request, pulled bool) {
	t.Helper()
	var served int64
	for _, r := range requests {
		if r.Status < 400 {
			served += r.Served
		}
	}
	// What is in the sockets' buffers was served, although nobody read it.
	const buffered = 16 << 20
	if served > faultTries*buffered {
		t.Errorf("%d bytes were served before the puller hung up", served)
	}
	if c.On != imagetest.OnLayer || !pulled {
		return
	}
	size, again := p.Layers[len(p.Layers)/2].Size, int64(0)
	if len(c.Faults) > 1 && c.Faults[1].IgnoreRange {
		again = c.Faults[0].After
	}
	if c.Name == "redirect elsewhere" {
		size = 0
	}
	if served != size+again && (served < size || !stands(c)) {
		t.Errorf("%d bytes were served, the layer has %d: %+v", served, size, requests)
	}
}

// TestWrongImages pulls every image of the table, by digest and by tag.
func TestWrongImages(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	outcomes, used := imageOutcomes(), make(map[string]bool)
	for _, keys := range [][]imagetest.Key{nil, {key}} {
		for _, c := range imagetest.Images(keys...) {
			want, ok := outcomes[c.Name]
			if !ok {
				t.Errorf("nobody says what is to come of %q", c.Name)
			}
			used[c.Name] = true
			t.Run(fmt.Sprintf("%s/encrypted=%v", c.Name, keys != nil), func(t *testing.T) {
				t.Parallel()
				testWrongImage(t, c, want, newKeyring(key))
			})
		}
	}
	for name := range outcomes {
		if !used[name] {
			t.Errorf("no image is called %q", name)
		}
	}
}

func testWrongImage(t *testing.T, c imagetest.ImageCase, want outcome, keys *keyring) {
	t.Helper()
	r := imagetest.New(t)
	e := newFaultEnv(t, r, keys, faultSetup{})
	p := c.Push(t, r)
	for _, manifest := range []digest.Digest{p.Manifest.Digest, ""} {
		about, stage := "a/b", imagepull.StageResolve
		if want.stage != "" && want.stage != imagepull.StageResolve {
			about = string(p.Layers[1].Digest)
		}
		if want.about != "" {
			about = want.about
		}
		want.check(t, e.bounded(p, manifest), stage, about)
	}
	if n := len(r.Requests("v1")) + len(r.Requests(p.Manifest.Digest.String())); n > 4 {
		t.Errorf("the manifest was asked for %d times", n)
	}
	if len(want.classes) == 0 {
		e.has(p)
		return
	}
	from := 0
	if want.stage != "" && want.stage != imagepull.StageResolve {
		from = 1
	}
	e.clean(p, from)
	good := r.Push(t, "a/good:good", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if err := e.bounded(good, ""); err != nil {
		t.Errorf("a good image after it: %v", err)
	}
	e.has(good)
}

func imageOutcomes() map[string]outcome {
	loss, invalid, unable := errdefs.ErrDataLoss, errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented
	return map[string]outcome{
		"index":                               good(1),
		"index of a thousand entries":         good(1),
		"index of a hundred thousand entries": bad(invalid, 1, "larger than 4 MiB"),
		"empty index":                         bad(errdefs.ErrNotFound, 1),
		"cyclic index":                        bad(loss, 1, "do not trust this registry"),
		"index nested 100 times":              bad(invalid, 1, "index").or(unable),
		"index without this platform":         bad(errdefs.ErrNotFound, 1, "plan9/vax"),
		"index with another size":             bad(loss, 1),
		"index with an impossible size":       bad(invalid, 1, "size -1"),
		"index with another digest":           bad(errdefs.ErrNotFound, 1),
		"index with a path for a digest":      bad(invalid, 1, "digest"),

		"manifest of another type":          bad(unable, 1, "vnd.example"),
		"manifest that says it is an index": bad(errdefs.ErrNotFound, 1).or(invalid),
		"schema 1":                          bad(unable, 1, "schema 1"),
		"more layers than diff ids":         bad(invalid, 1, "diff ids"),
		"no layers, but diff ids":           bad(invalid, 1, "diff ids"),
		"five thousand layers":              bad(invalid, 1),
		"layers in another order":           bad(loss, 1, "diff id").at(imagepull.StageVerify).naming("sha256:"),

		"config of another type":       bad(invalid, 1, "vnd.example.config"),
		"config with another size":     bad(loss, 1, "config"),
		"config of an impossible size": bad(invalid, 1, "size -5"),
		"config without a digest":      bad(invalid, 1, "digest"),
		"no such config":               bad(errdefs.ErrNotFound, 1, "config"),
		"config for another platform":  bad(invalid, 1, "linux/vax"),
		"diff id that is none":         bad(invalid, 1, "diff id"),
		"diff id of another hash":      bad(invalid, 1, "diff id"),

		"layer said to be larger":           bad(loss, 1).at(imagepull.StageFetch),
		"layer said to be smaller":          bad(loss, 1).at(imagepull.StageFetch),
		"layer said to be empty":            bad(loss, 1).at(imagepull.StageFetch),
		"layer of an impossible size":       bad(invalid, 1, "size -1"),
		"layer larger than any disk":        bad(errdefs.ErrResourceExhausted, 1, "space"),
		"layer with another digest":         bad(errdefs.ErrNotFound, 1).at(imagepull.StageFetch),
		"layer without a digest":            bad(invalid, 1, "digest"),
		"layer with a path for a digest":    bad(invalid, 1, "digest"),
		"layer of another hash":             bad(invalid, 1, "digest"),
		"layer of another type":             bad(unable, 1, "vnd.example.layer").at(imagepull.StageDecompress),
		"layer without a type":              bad(unable, 1).at(imagepull.StageDecompress),
		"layer of a type without end":       bad(unable, 1).at(imagepull.StageDecompress),
		"gzip that is said to be zstd":      bad(invalid, 1, "zstd").at(imagepull.StageDecompress),
		"gzip that is said to be plain":     bad(invalid, 1, "tar").at(imagepull.StageDecompress),
		"layer that is to be had elsewhere": good(1),
	}
}
