// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

// TestLayersSurviveFailureAndRestart lets the third of four layers fail for
// good, ends store and puller, and goes on with new ones.
func TestLayersSurviveFailureAndRestart(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), nil)
	l := imagetest.Layer{Key: &key, Random: 50_000, Compression: imagetest.Gzip}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{l, l, l, l}})
	third := p.Layers[2].Digest.String()
	e.registry.Fail(third, imagetest.Fault{Stall: true})
	if _, err := e.pull(t.Context(), p, p.Layers[1].ChainID); err != nil {
		t.Fatal(err)
	}
	checkFailure(t, e.top(p), errdefs.IsUnavailable, imagepull.StageFetch, third+" of "+p.Reference, "gave up after 4 tries")
	e.clean(p, 2)
	failed := len(e.registry.Requests(third))
	e.registry.Heal()
	e.restart(nil, nil)
	if _, err := e.puller.PullLayers(t.Context(), p.Reference); err != nil {
		t.Fatal(err)
	}
	e.has(p)
	for i, want := range []int{1, 1, failed + 1} {
		if n := len(e.registry.Requests(p.Layers[i].Digest.String())); n != want {
			t.Errorf("layer %d: %d requests, want %d", i, n, want)
		}
	}
	images := e.store.Images()
	if len(images) != 1 || images[0].Manifest != p.Manifest.Digest || !slices.Equal(images[0].References, []string{p.Reference}) || len(images[0].Layers) != 4 {
		t.Errorf("recorded are %+v", images)
	}
}

// TestLargeImageLeavesRoom stalls all layers of an image of many; another image
// is pulled all the same.
func TestLargeImageLeavesRoom(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) {
		o.MaxDownloads, o.MaxUnpacks, o.MaxUnpacksPerImage = 3, 3, 2
	})
	large := e.registry.Push(t, "a/large:v1", imagetest.Image{Layers: slices.Repeat([]imagetest.Layer{{Random: 1000}}, 100)})
	small := e.registry.Push(t, "a/small:v1", imagetest.Image{Layers: make([]imagetest.Layer, 3)})
	for _, l := range large.Layers {
		e.registry.Fail(l.Digest.String(), imagetest.Fault{Stall: true, After: 100})
	}
	done := make(chan error)
	go func() { done <- e.top(large) }()
	for _, l := range large.Layers[:2] {
		<-e.registry.Began(l.Digest.String())
	}
	if err := e.top(small); err != nil {
		t.Error(err)
	}
	started := 0
	for _, l := range large.Layers {
		if len(e.registry.Requests(l.Digest.String())) > 0 {
			started++
		}
	}
	if started != 2 {
		t.Errorf("%d layers of the large image are fetched side by side, want 2", started)
	}
	e.puller.Close()
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

// lines collects log records as text.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(b))
	return len(b), nil
}

func (l *lines) with(parts ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.all {
		if containsAll(line, parts...) {
			n++
		}
	}
	return n
}

// TestLog has one line for each pull, each retry and each verdict.
func TestLog(t *testing.T) {
	t.Parallel()
	log, policy := &lines{}, &judge{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) {
		o.Policy, o.Measure, o.VerdictLifetime = policy, &register{}, time.Nanosecond
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
	})
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
	blob := p.Layers[1].Digest.String()
	e.registry.Fail(blob, imagetest.Fault{Status: 503, Times: 2})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	policy.say(errors.Join(errdefs.ErrPermissionDenied))
	if err := e.top(p); err == nil {
		t.Fatal("not refused")
	}
	image := "image=" + p.Reference + " "
	for what, tc := range map[string]struct {
		parts []string
		want  int
	}{
		"retry":       {[]string{"tried again", image, "layer=" + blob, "stage=fetch", "level=WARN"}, 2},
		"allowed":     {[]string{"policy allows", image, "stage=policy", "level=INFO"}, 1},
		"refused":     {[]string{"does not allow", image, "stage=policy", "level=WARN"}, 1},
		"measured":    {[]string{"measured", image, "stage=measure", p.Manifest.Digest.String()}, 1},
		"pulled":      {[]string{"msg=pulled", image, "stage=pull", "layers=2"}, 1},
		"not pulled":  {[]string{"pull ended", image, "stage=pull", "policy image"}, 1},
		"all of them": {nil, 7},
	} {
		if got := log.with(tc.parts...); got != tc.want {
			t.Errorf("%s: %d lines, want %d of\n%s", what, got, tc.want, strings.Join(log.all, ""))
		}
	}
}
