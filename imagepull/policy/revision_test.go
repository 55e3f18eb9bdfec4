// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

// TestRevision changes one thing after the other and wants to see it exactly
// where it counts.
func TestRevision(t *testing.T) {
	t.Parallel()
	const uri, keyURI = "kbs:///default/policy/image", "kbs:///default/key/pub"
	s, other := newScene(t), newScene(t)
	now := time.Now()
	doc := `{"default":[{"type":"reject"}],"transports":{"docker":{
		"r.example/signed":[{"type":"sigstoreSigned","keyPath":"` + keyURI + `","signedIdentity":{"type":"anyIdentity"}}],
		"r.example/listed":[{"type":"digests","digests":["` + s.image.Manifest.String() + `"]}]}}}`
	k := &kbs{resources: map[string][]byte{uri: []byte(doc), keyURI: sigstoretest.PublicPEM(t, s.key)}}
	refresh := policy.Refresh{Every: time.Minute, MaxStale: time.Minute, Now: func() time.Time { return now }}
	l, err := policy.NewLoader(uri, k, refresh)
	if err != nil {
		t.Fatal(err)
	}
	v := policy.NewVerifier(l, nil, k, policy.Options{Refresh: refresh})
	names := []string{"r.example/signed:1", "r.example/listed", "r.example/other:1"}
	revisions := func() (all [3]string) {
		for i, name := range names {
			if all[i], err = v.Revision(t.Context(), name); err != nil || all[i] == "" {
				t.Errorf("%s: %q, %v", name, all[i], err)
			}
		}
		return all
	}
	changed := func(what string, want [3]bool, change func()) {
		t.Helper()
		before := revisions()
		change()
		now = now.Add(time.Minute)
		after := revisions()
		var got [3]bool
		for i := range got {
			got[i] = before[i] != after[i]
		}
		if got != want {
			t.Errorf("%s: changed %v, want %v", what, got, want)
		}
	}
	set := func(uri string, b []byte) func() {
		return func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.resources[uri] = b
		}
	}
	changed("nothing", [3]bool{}, func() {})
	changed("the key", [3]bool{true, false, false}, set(keyURI, sigstoretest.PublicPEM(t, other.key)))
	changed("the policy", [3]bool{true, true, true}, set(uri, []byte(doc+"\n")))

	// Where a source cannot be reached the last document stands in for a while.
	before := revisions()
	k.mu.Lock()
	k.err = fmt.Errorf("no answer: %w", errdefs.ErrUnavailable)
	k.mu.Unlock()
	now = now.Add(time.Minute)
	if revisions() != before {
		t.Error("the revision changed as the KBS was away")
	}
	now = now.Add(time.Minute)
	_, err = v.Revision(t.Context(), names[0])
	want(t, err, errdefs.ErrUnavailable, "no answer")
	// And one that is withdrawn counts at once.
	k.mu.Lock()
	k.err = nil
	delete(k.resources, keyURI)
	k.mu.Unlock()
	_, err = v.Revision(t.Context(), names[0])
	want(t, err, errDenied, "r.example/signed requires sigstoreSigned", keyURI)
	_, err = v.Revision(t.Context(), "A/B:1")
	want(t, err, errdefs.ErrInvalidArgument, "not an image reference")
}

// TestMaterialsAreComplete has every member that names a document read by
// Revision, so that none can change behind its back.
func TestMaterialsAreComplete(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		requirement string
		uris        int
	}{
		{`{"type":"signedBy","keyType":"GPGKeys","keyPaths":["kbs:///a/b/1","kbs:///a/b/2"]}`, 2},
		{`{"type":"sigstoreSigned","keyPaths":["kbs:///a/b/1","kbs:///a/b/2"],"rekorPublicKeyPath":"kbs:///a/b/3"}`, 3},
		{`{"type":"sigstoreSigned","fulcio":{"caPath":"kbs:///a/b/1","oidcIssuer":"i","subjectEmail":"e"},"rekorPublicKeyPaths":["kbs:///a/b/2"]}`, 2},
		{`{"type":"sigstoreSigned","fulcio":{"trustedRootPath":"kbs:///a/b/1","oidcIssuer":"i","subjectEmail":"e"}}`, 1},
		{`{"type":"sigstoreSigned","pki":{"caRootsPath":"kbs:///a/b/1","caIntermediatesPath":"kbs:///a/b/2","subjectEmail":"e"}}`, 2},
	} {
		k := &kbs{resources: map[string][]byte{}}
		for i := range c.uris {
			k.resources[fmt.Sprintf("kbs:///a/b/%d", i+1)] = []byte("x")
		}
		p, err := policy.Parse([]byte(requires(c.requirement)))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := policy.NewVerifier(p, nil, k, policy.Options{}).Revision(t.Context(), "r.example/a:1"); err != nil {
			t.Error(err)
		}
		if got := int(k.asked.Load()); got != c.uris {
			t.Errorf("%s: read %d documents, want %d", c.requirement, got, c.uris)
		}
	}
}
