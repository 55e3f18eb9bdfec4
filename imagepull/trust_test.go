// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// judge is an image policy that notes what it is asked.
type judge struct {
	mu       sync.Mutex
	asked    []string
	err      error
	hook     func()
	revision string
	away     error // why the revision is not known
}

func (j *judge) Revision(context.Context, string) (string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.revision, j.away
}

func (j *judge) Verify(_ context.Context, name string, manifest, index digest.Digest) error {
	j.mu.Lock()
	j.asked = append(j.asked, fmt.Sprintf("%s %s %s", name, manifest, index))
	err, hook := j.err, j.hook
	j.mu.Unlock()
	if hook != nil {
		hook()
	}
	return err
}

func (j *judge) say(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
}

func (j *judge) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	asked := j.asked
	j.asked = nil
	return asked
}

// register is a runtime measurement that notes what it is extended with.
type register struct {
	mu     sync.Mutex
	events []string
	err    error
	hook   func()
}

func (r *register) Measure(_ context.Context, event []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hook != nil {
		r.hook()
	}
	if r.err == nil {
		r.events = append(r.events, string(event))
	}
	return r.err
}

func (r *register) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

// TestPolicyIsAskedOnEveryPull has layers that are there and layers that are not,
// asked for by themselves and as an image, allowed and refused.
func TestPolicyIsAskedOnEveryPull(t *testing.T) {
	t.Parallel()
	denied := errdefs.ErrPermissionDenied.WithMessage("image policy: rejected by its rules")
	for _, cached := range []bool{false, true} {
		for _, whole := range []bool{false, true} {
			for _, allowed := range []bool{false, true} {
				t.Run(fmt.Sprintf("cached=%v/whole=%v/allowed=%v", cached, whole, allowed), func(t *testing.T) {
					t.Parallel()
					policy := &judge{}
					e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy, o.VerdictLifetime = policy, time.Nanosecond })
					p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
					if cached {
						if err := e.top(p); err != nil {
							t.Fatal(err)
						}
						policy.take()
					}
					if !allowed {
						policy.say(denied)
					}
					bundle := filepath.Join(e.root, "bundle")
					pull := func() error { return e.top(p) }
					if whole {
						pull = func() error { _, err := e.puller.PullImage(t.Context(), p.Reference, bundle); return err }
					}
					err := pull()
					if want := []string{e.registry.Host() + "/a/b:v1 " + p.Manifest.Digest.String() + " "}; !slices.Equal(policy.take(), want) {
						t.Errorf("want exactly the question %q", want)
					}
					if allowed {
						if err != nil {
							t.Fatal(err)
						}
						if err := e.puller.RemoveImage(t.Context(), bundle); err != nil {
							t.Error(err)
						}
						return
					}
					checkFailure(t, err, errdefs.IsPermissionDenied, imagepull.StagePolicy, "policy image "+e.registry.Host()+"/a/b:v1: image policy: rejected")
					for i, l := range p.Layers {
						if n := len(e.registry.Requests(l.Digest.String())); n > 0 && !cached {
							t.Errorf("layer %d of a refused image was fetched", i)
						}
					}
					if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundle)); err != nil || len(mounts) > 0 {
						t.Errorf("left mounted: %v %v", mounts, err)
					}
				})
			}
		}
	}
}

// TestPolicyHearsTheNameThatWasGiven has names of one image, of which one is
// refused: that another is allowed does not help it.
func TestPolicyHearsTheNameThatWasGiven(t *testing.T) {
	t.Parallel()
	policy := &judge{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy = policy })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	d, name := p.Manifest.Digest, e.registry.Host()+"/a/b"
	for _, given := range []string{name + ":v1", name + "@" + d.String(), name + ":other@" + d.String()} {
		policy.say(nil)
		if _, _, _, err := e.puller.PullLayer(t.Context(), given, d, p.Chain()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{given + " " + d.String() + " "}, policy.take()); diff != "" {
			t.Error(diff)
		}
		policy.say(errdefs.ErrPermissionDenied)
		if _, _, _, err := e.puller.PullLayer(t.Context(), given, d, p.Chain()); err != nil {
			t.Errorf("the verdict was not kept: %v", err)
		}
		if asked := policy.take(); asked != nil {
			t.Errorf("asked again at once: %q", asked)
		}
		if _, _, _, err := e.puller.PullLayer(t.Context(), given, d, digest.FromString("foreign")); !errdefs.IsPermissionDenied(err) {
			t.Errorf("a chain id that no verdict was about: %v", err)
		}
		policy.take()
	}
}

// TestRefusalIsNotRemembered also has no verdict for a mere tag kept.
func TestRefusalIsNotRemembered(t *testing.T) {
	t.Parallel()
	policy := &judge{err: errdefs.ErrPermissionDenied}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy, o.VerdictLifetime = policy, time.Hour })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if err := e.top(p); !errdefs.IsPermissionDenied(err) {
		t.Fatal(err)
	}
	policy.say(nil)
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	policy.take()
	for range 2 {
		if _, _, _, err := e.puller.PullLayer(t.Context(), p.Reference, "", p.Chain()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(policy.take()); n != 2 {
		t.Errorf("asked %d times for a tag, want 2", n)
	}
}

// TestRefusalEndsAVerdict has the policy change its mind within the lifetime of
// a verdict: once it has been heard to, the older verdict counts no longer.
func TestRefusalEndsAVerdict(t *testing.T) {
	t.Parallel()
	policy := &judge{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy, o.VerdictLifetime, o.Tries = policy, time.Hour, 1 })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	foreign := digest.FromString("foreign") // what no verdict was about, so that the policy is asked
	policy.say(errdefs.ErrUnavailable)
	if _, err := e.pull(t.Context(), p, foreign); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if err := e.top(p); err != nil {
		t.Errorf("a policy that is away ended the verdict: %v", err)
	}
	policy.say(errdefs.ErrPermissionDenied)
	if _, err := e.pull(t.Context(), p, foreign); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
	if err := e.top(p); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the verdict outlived a refusal: %v", err)
	}
}

// A registry that has signatures may be away for a moment. The key broker's
// client has tried again itself.
func TestPolicyAwayIsTriedAgain(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		err   error
		asked int
	}{
		"registry":   {fmt.Errorf("signatures: %w", &registry.Error{Temporary: true}), 2},
		"key broker": {errdefs.ErrUnavailable.WithMessage("kbs: no answer"), 1},
	} {
		policy := &judge{err: c.err}
		policy.hook = func() { policy.say(nil) }
		e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy = policy })
		p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
		if err := e.top(p); (err == nil) != (c.asked > 1) {
			t.Errorf("%s: error %v", what, err)
		}
		if n := len(policy.take()); n != c.asked {
			t.Errorf("%s: asked %d times, want %d", what, n, c.asked)
		}
	}
}

func TestMeasureBeforeTheRootfs(t *testing.T) {
	t.Parallel()
	rtmr := &register{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Measure = rtmr })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
	bundle := filepath.Join(e.root, "bundle")
	mounted := func() bool {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundle))
		return err != nil || len(mounts) > 0
	}
	rtmr.hook = func() {
		if mounted() {
			t.Error("it was mounted before it was measured")
		}
	}
	rtmr.err = errdefs.ErrUnavailable.WithMessage("attestation agent: no answer")
	_, err := e.puller.PullImage(t.Context(), p.Reference, bundle)
	checkFailure(t, err, errdefs.IsUnavailable, imagepull.StageMeasure, "measure image "+p.Reference+": attestation agent: no answer")
	if mounted() || len(e.store.Holders()) > 0 {
		t.Error("something is left of an image that was not measured")
	}
	rtmr.err = nil
	for range 2 { // the second time it is there, and stays measured once
		if _, err := e.puller.PullImage(t.Context(), p.Reference, bundle); err != nil {
			t.Fatal(err)
		}
		rtmr.hook = nil
	}
	other := filepath.Join(e.root, "other")
	if _, err := e.puller.PullImage(t.Context(), p.Reference, other); err != nil {
		t.Fatal(err)
	}
	event := `{"digest":"` + p.Manifest.Digest.String() + `","image":"` + p.Reference + `"}`
	if diff := cmp.Diff([]string{event, event}, rtmr.take()); diff != "" {
		t.Errorf("one event for each bundle: %s", diff)
	}
	if err := errors.Join(e.puller.RemoveImage(t.Context(), bundle), e.puller.RemoveImage(t.Context(), other)); err != nil {
		t.Error(err)
	}
}

func TestMeasureBeforeALayerIsHandedOut(t *testing.T) {
	t.Parallel()
	rtmr := &register{err: errdefs.ErrUnavailable}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Measure = rtmr })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: make([]imagetest.Layer, 5)})
	for range 2 {
		checkFailure(t, e.top(p), errdefs.IsUnavailable, imagepull.StageMeasure, p.Reference)
	}
	rtmr.err = nil
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
	event := func(name string) string {
		return `{"digest":"` + p.Manifest.Digest.String() + `","image":"` + name + `"}`
	}
	if diff := cmp.Diff([]string{event(p.Reference)}, rtmr.take()); diff != "" {
		t.Error(diff)
	}
	another := e.registry.Host() + "/a/b@" + p.Manifest.Digest.String()
	if _, _, _, err := e.puller.PullLayer(t.Context(), another, "", p.Chain()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{event(another)}, rtmr.take()); diff != "" {
		t.Errorf("another name of the same image: %s", diff)
	}
}

// slowRegister measures when it is let, or not at all.
type slowRegister struct {
	register
	began, let chan struct{}
}

func (r *slowRegister) Measure(ctx context.Context, event []byte) error {
	r.began <- struct{}{}
	select {
	case <-r.let:
		return r.register.Measure(ctx, event)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TestMeasurementOutlivesItsFirstCaller has that one give up while the
// registers are busy, and the next one find it measured once. A closed puller
// waits for no register.
func TestMeasurementOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	rtmr := &slowRegister{began: make(chan struct{}), let: make(chan struct{})}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Measure = rtmr })
	one := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	two := e.registry.Push(t, "a/b:v2", imagetest.Image{Layers: []imagetest.Layer{{}}})
	begin := func(p imagetest.Pushed) (gaveUp func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := e.pull(ctx, p, p.Chain())
			done <- err
		}()
		<-rtmr.began
		return func() error {
			cancel()
			return <-done
		}
	}
	if err := begin(one)(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(rtmr.let)
	if err := e.top(one); err != nil {
		t.Error(err)
	}
	if n := len(rtmr.take()); n != 1 {
		t.Errorf("measured %d times", n)
	}
	rtmr.let = nil
	if err := begin(two)(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	e.puller.Close()
	if err := e.top(two); !errdefs.IsUnavailable(err) || len(rtmr.take()) > 0 {
		t.Errorf("after Close: %v", err)
	}
}

// TestPullLayers has a whole image without a bundle: asked about and told of
// each time, measured once.
func TestPullLayers(t *testing.T) {
	t.Parallel()
	policy, rtmr := &judge{}, &register{}
	r, edit := recorded()
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { edit(o); o.Policy, o.Measure = policy, rtmr })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}, {}}})
	for n := range 2 {
		image, err := e.puller.PullLayers(t.Context(), p.Reference)
		if err != nil || image.Manifest != p.Manifest.Digest || image.Find(p.Chain()) != 1 {
			t.Fatalf("got %+v, %v", image, err)
		}
		if asked := policy.take(); len(asked) != 1 {
			t.Errorf("asked %q", asked)
		}
		commits := 0
		for _, ev := range r.take() {
			if line(ev) == "commit end" && ev.Cached == (n > 0) {
				commits++
			}
		}
		if commits != 2 {
			t.Errorf("heard of %d layers", commits)
		}
	}
	e.has(p)
	if events := rtmr.take(); len(events) != 1 {
		t.Errorf("measured: %q", events)
	}
	if images := e.store.Images(); len(images) != 1 || images[0].InUse {
		t.Errorf("recorded: %+v", images)
	}
	policy.say(errdefs.ErrPermissionDenied)
	if image, err := e.puller.PullLayers(t.Context(), p.Reference); !errdefs.IsPermissionDenied(err) || image.Manifest != "" {
		t.Errorf("got %+v, %v", image, err)
	}
}

// TestPolicyHearsTheIndex has an image that an index led to.
func TestPolicyHearsTheIndex(t *testing.T) {
	t.Parallel()
	policy, rtmr := &judge{}, &register{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy, o.Measure = policy, rtmr })
	p := e.registry.Push(t, "a/b:image", imagetest.Image{Layers: []imagetest.Layer{{}}})
	index := e.registry.PushIndex(t, "a/b:index", false, p)
	name := e.registry.Host() + "/a/b:index"
	for _, manifest := range []digest.Digest{"", index.Digest} {
		if _, _, _, err := e.puller.PullLayer(t.Context(), name, manifest, p.Chain()); err != nil {
			t.Fatal(err)
		}
	}
	want := name + " " + p.Manifest.Digest.String() + " " + index.Digest.String()
	if diff := cmp.Diff([]string{want, want}, policy.take()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{`{"digest":"` + p.Manifest.Digest.String() + `","image":"` + name + `"}`}, rtmr.take()); diff != "" {
		t.Error(diff)
	}
}

// TestVerdictIsNotForLayersOfOthers asks for a layer that is in the store under
// the name of an image that is allowed and does not have it.
func TestVerdictIsNotForLayersOfOthers(t *testing.T) {
	t.Parallel()
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy = &judge{} })
	allowed := e.registry.Push(t, "a/allowed:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	other := e.registry.Push(t, "a/other:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if err := errors.Join(e.top(allowed), e.top(other)); err != nil {
		t.Fatal(err)
	}
	if path, err := e.pull(t.Context(), allowed, other.Chain()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %q, %v", path, err)
	}
}
