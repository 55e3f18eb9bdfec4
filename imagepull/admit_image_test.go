// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

const admitted = "r.example/a/b:v1"

func newAdmission(t *testing.T, edit func(*imagepull.Options)) *env {
	t.Helper()
	return newEnv(t, nil, func(o *imagepull.Options) {
		o.VerdictLifetime = time.Nanosecond
		edit(o)
	})
}

func (j *judge) turn(revision string, verdict, away error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.revision, j.err, j.away = revision, verdict, away
}

// TestConsentCountsWhileThePolicyIsTheSame has one policy asked once for each
// name, manifest and index, and another one, even with the same answer, again.
func TestConsentCountsWhileThePolicyIsTheSame(t *testing.T) {
	t.Parallel()
	policy := &judge{revision: "one"}
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy = policy })
	m, index := digest.FromString("manifest"), digest.FromString("index")
	admit := func(name string, m, index digest.Digest, asked int) {
		t.Helper()
		if err := e.puller.AdmitImage(t.Context(), name, m, index); err != nil {
			t.Error(err)
		}
		if got := policy.take(); len(got) != asked || asked == 1 && got[0] != fmt.Sprintf("%s %s %s", name, m, index) {
			t.Errorf("%s: asked %q, want %d", name, got, asked)
		}
	}
	if e.puller.AdmitsAll() {
		t.Error("there is a policy")
	}
	admit(admitted, m, "", 1)
	admit(admitted, m, "", 0)
	admit(admitted, m, index, 1)
	admit(admitted, index, "", 1)
	admit("r.example/a/b:v2", m, "", 1)
	admit("r.example/a/b@"+index.String(), m, index, 1)
	policy.turn("two", nil, nil)
	admit(admitted, m, "", 1)
	admit(admitted, m, "", 0)
	// A registry that is away matters only where nothing is known.
	policy.turn("two", errdefs.ErrUnavailable.WithMessage("signatures cannot be read"), nil)
	admit(admitted, m, "", 0)
	policy.turn("three", errdefs.ErrUnavailable.WithMessage("signatures cannot be read"), nil)
	err := e.puller.AdmitImage(t.Context(), admitted, m, "")
	checkFailure(t, err, errdefs.IsUnavailable, imagepull.StagePolicy, "policy image "+admitted+": signatures cannot be read")
	policy.turn("two", nil, errdefs.ErrUnavailable.WithMessage("no policy can be had"))
	err = e.puller.AdmitImage(t.Context(), admitted, m, "")
	checkFailure(t, err, errdefs.IsUnavailable, imagepull.StagePolicy, "no policy can be had")
}

func TestRefusedAdmissionIsNotRemembered(t *testing.T) {
	t.Parallel()
	policy := &judge{err: errdefs.ErrPermissionDenied.WithMessage("image policy: rejected")}
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy = policy })
	m := digest.FromString("manifest")
	for range 2 {
		err := e.puller.AdmitImage(t.Context(), admitted, m, "")
		checkFailure(t, err, errdefs.IsPermissionDenied, imagepull.StagePolicy, "policy image "+admitted+": image policy: rejected")
	}
	if asked := policy.take(); len(asked) != 2 {
		t.Errorf("asked %q", asked)
	}
	policy.say(nil)
	if err := e.puller.AdmitImage(t.Context(), admitted, m, ""); err != nil {
		t.Error(err)
	}
}

// TestPolicyThatChangesMeanwhile gives no consent that could be remembered: it
// is not known which of both policies has answered.
func TestPolicyThatChangesMeanwhile(t *testing.T) {
	t.Parallel()
	policy := &judge{revision: "one"}
	policy.hook = func() { policy.turn("two", nil, nil) }
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy = policy })
	for range 2 {
		policy.turn("one", nil, nil)
		if err := e.puller.AdmitImage(t.Context(), admitted, digest.FromString("manifest"), ""); err != nil {
			t.Error(err)
		}
	}
	if asked := policy.take(); len(asked) != 2 {
		t.Errorf("asked %q", asked)
	}
}

// TestPullIsAConsent has what was pulled admitted without a question, until a
// pull is refused.
func TestPullIsAConsent(t *testing.T) {
	t.Parallel()
	policy := &judge{}
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Policy, o.VerdictLifetime = policy, time.Nanosecond })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{}}})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	policy.take()
	if err := e.puller.AdmitImage(t.Context(), p.Reference, p.Manifest.Digest, ""); err != nil {
		t.Error(err)
	}
	if asked := policy.take(); asked != nil {
		t.Errorf("asked %q", asked)
	}
	policy.say(errdefs.ErrPermissionDenied)
	if err := e.top(p); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
	if err := e.puller.AdmitImage(t.Context(), p.Reference, p.Manifest.Digest, ""); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the consent outlived a refusal: %v", err)
	}
}

// TestAdmissionAsksARegistryAgain: what is away for a moment refuses nothing.
func TestAdmissionAsksARegistryAgain(t *testing.T) {
	t.Parallel()
	policy := &judge{err: fmt.Errorf("signatures: %w", &registry.Error{Temporary: true})}
	policy.hook = func() { policy.say(nil) }
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy = policy })
	if err := e.puller.AdmitImage(t.Context(), admitted, digest.FromString("manifest"), ""); err != nil {
		t.Error(err)
	}
	if asked := policy.take(); len(asked) != 2 {
		t.Errorf("asked %q", asked)
	}
}

// TestAdmissionIsMeasured has one event for each name and manifest, after the
// verdict and before the answer, and none for what is refused.
func TestAdmissionIsMeasured(t *testing.T) {
	t.Parallel()
	policy, rtmr := &judge{}, &register{}
	rtmr.hook = func() {
		if policy.take() == nil {
			t.Error("measured before the policy was asked")
		}
	}
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy, o.Measure = policy, rtmr })
	m := digest.FromString("manifest")
	policy.say(errdefs.ErrPermissionDenied)
	if err := e.puller.AdmitImage(t.Context(), admitted, m, ""); !errdefs.IsPermissionDenied(err) || len(rtmr.take()) > 0 {
		t.Error(err)
	}
	policy.say(nil)
	rtmr.err = errdefs.ErrUnavailable.WithMessage("registers: busy")
	err := e.puller.AdmitImage(t.Context(), admitted, m, "")
	checkFailure(t, err, errdefs.IsUnavailable, imagepull.StageMeasure, "measure image "+admitted+": registers: busy")
	rtmr.err, rtmr.hook = nil, nil
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := e.puller.AdmitImage(t.Context(), admitted, m, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff([]string{`{"digest":"` + m.String() + `","image":"` + admitted + `"}`}, rtmr.take()); diff != "" {
		t.Error(diff)
	}
}

// TestAdmissionWithoutPolicy still measures, and without that does nothing.
func TestAdmissionWithoutPolicy(t *testing.T) {
	t.Parallel()
	rtmr := &register{}
	e := newAdmission(t, func(o *imagepull.Options) { o.Measure = rtmr })
	if err := e.puller.AdmitImage(t.Context(), admitted, digest.FromString("manifest"), ""); err != nil || e.puller.AdmitsAll() {
		t.Error(err)
	}
	if events := rtmr.take(); len(events) != 1 {
		t.Errorf("measured %q", events)
	}
	e = newAdmission(t, func(*imagepull.Options) {})
	if err := e.puller.AdmitImage(t.Context(), "no name", "", ""); err != nil || !e.puller.AdmitsAll() {
		t.Error(err)
	}
}

func TestBadAdmissions(t *testing.T) {
	t.Parallel()
	policy := &judge{}
	e := newAdmission(t, func(o *imagepull.Options) { o.Policy = policy })
	m := digest.FromString("manifest")
	for _, c := range []struct {
		name            string
		manifest, index digest.Digest
		class           error
	}{
		{"no name", m, "", errdefs.ErrInvalidArgument},
		{admitted, "", "", errdefs.ErrInvalidArgument},
		{admitted, "", m, errdefs.ErrInvalidArgument},
		{admitted, "sha256:00", "", errdefs.ErrInvalidArgument},
		{admitted, m, digest.SHA512.FromString("x"), errdefs.ErrInvalidArgument},
		{"r.example/a@" + digest.FromString("another").String(), m, digest.FromString("index"), errdefs.ErrPermissionDenied},
	} {
		if err := e.puller.AdmitImage(t.Context(), c.name, c.manifest, c.index); !errors.Is(err, c.class) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if asked := policy.take(); asked != nil {
		t.Errorf("asked %q", asked)
	}
}
