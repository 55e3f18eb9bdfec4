// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

// TestAllMustHold: one requirement that does not hold refuses.
func TestAllMustHold(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
	good := strings.TrimSuffix(strings.TrimPrefix(s.byKey(""), `{"default":[`), `]}`)
	list := `{"type":"digests","digests":["` + s.image.Manifest.String() + `"]}`
	other := `{"type":"digests","digests":["` + digest.FromString("x").String() + `"]}`
	want(t, s.verify(requires(good+","+list+`,{"type":"insecureAcceptAnything"}`), policy.Options{}), nil)
	asked := s.asked
	want(t, s.verify(requires(good+","+good+","+good), policy.Options{}), nil)
	if s.asked != 2*asked {
		t.Errorf("%d requests for one requirement, %d for three", asked, s.asked-asked)
	}
	want(t, s.verify(requires(good+","+other), policy.Options{}), errDenied, "requires digests: ", "is not in the list: let the key owner add it")
	want(t, s.verify(requires(other+","+good), policy.Options{}), errDenied, "requires digests")
	want(t, s.verify(requires(good+`,{"type":"reject"}`), policy.Options{}), errDenied, "requires reject: "+imageName+" may not be pulled")
}

func TestDigests(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	list := func(d digest.Digest) string { return requires(`{"type":"digests","digests":["` + d.String() + `"]}`) }
	want(t, s.verify(list(s.image.Manifest), policy.Options{}), nil)
	want(t, s.verify(list(s.image.Index), policy.Options{}), nil)
	want(t, s.verify(list(digest.FromString("x")), policy.Options{}), errDenied, s.image.Manifest.String())
	s.image.Index = ""
	want(t, s.verify(list(s.image.Manifest), policy.Options{}), nil)
}

func TestImagesThatAreNone(t *testing.T) {
	t.Parallel()
	accept := requires(`{"type":"insecureAcceptAnything"}`)
	d, other := digest.FromString("a"), digest.FromString("b")
	for _, c := range []struct {
		image policy.Image
		class error
	}{
		{policy.Image{Name: "a.b/c:1", Manifest: d}, nil},
		{policy.Image{Name: "a.b/c:1@" + d.String(), Manifest: d}, nil},
		{policy.Image{Name: "a.b/c@" + d.String(), Manifest: other, Index: d}, nil},
		{policy.Image{Name: "a.b/c@" + d.String(), Manifest: other}, errDenied},
		{policy.Image{Name: "a.b/c:1"}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "a.b/c:1", Index: d}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "a.b/c:1", Manifest: "sha256:00"}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "a.b/c:1", Manifest: d, Index: digest.SHA512.FromString("x")}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "", Manifest: d}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "A/B:1", Manifest: d}, errdefs.ErrInvalidArgument},
		{policy.Image{Name: "a.b/" + strings.Repeat("c", 2000), Manifest: d}, errdefs.ErrInvalidArgument},
	} {
		s := newScene(t)
		s.image = c.image
		want(t, s.verify(accept, policy.Options{}), c.class)
	}
	var zero policy.Policy
	err := policy.NewVerifier(&zero, nil, nil, policy.Options{}).Verify(t.Context(), policy.Image{Name: "a.b/c:1", Manifest: d})
	want(t, err, errDenied)
}

// kbs is a KBS with resources, of which some may fail.
type kbs struct {
	mu        sync.Mutex
	resources map[string][]byte
	err       error
	asked     atomic.Int32
	gate      chan struct{} // answers only once it is closed
}

func (k *kbs) GetResource(ctx context.Context, uri string) ([]byte, error) {
	k.asked.Add(1)
	if k.gate != nil {
		select {
		case <-k.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	b, ok := k.resources[uri]
	if !ok {
		return nil, fmt.Errorf("kbs: no such resource: %w", errdefs.ErrNotFound)
	}
	return b, nil
}

// TestLoader follows a policy through the life of its document.
func TestLoader(t *testing.T) {
	t.Parallel()
	const uri = "kbs:///default/policy/image"
	now := time.Now()
	k := &kbs{resources: map[string][]byte{uri: []byte(requires(`{"type":"insecureAcceptAnything"}`))}}
	l, err := policy.NewLoader(uri, k, policy.Refresh{Every: time.Minute, MaxStale: 10 * time.Minute, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	v := policy.NewVerifier(l, nil, k, policy.Options{})
	verify := func() error {
		return v.Verify(t.Context(), policy.Image{Name: "a.b/c:1", Manifest: digest.FromString("x")})
	}
	if k.asked.Load() != 0 {
		t.Error("asked before it was needed")
	}
	want(t, verify(), nil)
	want(t, verify(), nil)
	if k.asked.Load() != 1 {
		t.Errorf("asked %d times", k.asked.Load())
	}
	// A new policy holds after a minute.
	k.resources[uri] = []byte(requires(`{"type":"reject"}`))
	want(t, verify(), nil)
	now = now.Add(time.Minute)
	want(t, verify(), errDenied)
	// An unreachable KBS leaves the last good one, for ten minutes.
	k.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	now = now.Add(10 * time.Minute)
	want(t, verify(), errDenied, "requires reject")
	now = now.Add(2 * time.Minute)
	want(t, verify(), errAway, "image policy: "+uri, "away")
	// It comes back.
	k.err = nil
	k.resources[uri] = []byte(requires(`{"type":"insecureAcceptAnything"}`))
	want(t, verify(), nil)
	// A bad policy is an error, not the last good one.
	now = now.Add(time.Minute)
	k.resources[uri] = []byte(`{"default":[]}`)
	want(t, verify(), errdefs.ErrInvalidArgument, uri, "default: no requirement")
	// A KBS that refuses is believed at once, and for good.
	k.resources[uri] = []byte(requires(`{"type":"insecureAcceptAnything"}`))
	now = now.Add(time.Minute)
	want(t, verify(), nil)
	k.err = fmt.Errorf("kbs: policy denied: %w", errdefs.ErrPermissionDenied)
	now = now.Add(time.Minute)
	want(t, verify(), errDenied, "policy denied")
	k.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	want(t, verify(), errAway)
	k.err = nil
	delete(k.resources, uri)
	want(t, verify(), errdefs.ErrNotFound)
	k.resources[uri] = make([]byte, 2<<20)
	want(t, verify(), errdefs.ErrInvalidArgument, "longer than")
}

// TestLoaderServesAllWhoWait: many pulls ask once, and one that gives up does
// not disturb the others.
func TestLoaderServesAllWhoWait(t *testing.T) {
	t.Parallel()
	const uri = "kbs:///default/policy/image"
	k := &kbs{resources: map[string][]byte{uri: []byte(requires(`{"type":"insecureAcceptAnything"}`))}, gate: make(chan struct{})}
	l, err := policy.NewLoader(uri, k, policy.Refresh{})
	if err != nil {
		t.Fatal(err)
	}
	gone, giveUp := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := l.Policy(gone)
		first <- err
	}()
	results := make(chan error, 20)
	for range cap(results) {
		go func() {
			_, err := l.Policy(t.Context())
			results <- err
		}()
	}
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("gave up with %v", err)
	}
	close(k.gate)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if n := k.asked.Load(); n > 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestKeysByURI: keys come from the KBS and from files and are read again.
func TestKeysByURI(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
	now := time.Now()
	good, bad := sigstoretest.PublicPEM(t, s.key), sigstoretest.PublicPEM(t, s.eve)
	file := filepath.Join(t.TempDir(), "eve.pub")
	if err := os.WriteFile(file, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	k := &kbs{resources: map[string][]byte{"kbs:///default/key/1": good, "kbs+pkcs11://x/y": bad, "initdata:///cosign.pub": good}}
	verifier := func(doc string, max time.Duration) func() error {
		p, err := policy.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		v := policy.NewVerifier(p, s.repo, k, policy.Options{Refresh: policy.Refresh{MaxStale: max, Now: func() time.Time { return now }}})
		return func() error { return v.Verify(t.Context(), s.image) }
	}
	all := verifier(bySigstore(`"keyPaths":["`+file+`","kbs+pkcs11://x/y","kbs:///default/key/1"]`), 0)
	want(t, all(), nil)
	want(t, verifier(bySigstore(`"keyPath":"initdata:///cosign.pub"`), 0)(), nil)
	want(t, verifier(bySigstore(`"keyPath":"kbs+pkcs11://x/y"`), 0)(), errDenied, "not signed by a trusted key")
	want(t, verifier(bySigstore(`"keyPath":"kbs:///default/key/2"`), 0)(), errDenied, "default[0].keyPath cannot be read: kbs:///default/key/2", "no such resource")
	strict := verifier(bySigstore(`"keyPath":"kbs:///default/key/1"`), -1)
	want(t, strict(), nil)
	k.err = fmt.Errorf("kbs: away: %w", errdefs.ErrUnavailable)
	now = now.Add(4 * time.Minute)
	want(t, all(), nil)
	want(t, strict(), nil)
	now = now.Add(2 * time.Minute)
	want(t, strict(), errAway, "away")
	want(t, all(), nil) // 6 min old, 35 allowed
	now = now.Add(30 * time.Minute)
	want(t, all(), errAway, "away")
	// A key that was replaced no longer counts.
	k.err = nil
	k.resources["kbs:///default/key/1"] = bad
	want(t, all(), errDenied)
	k.resources["kbs:///default/key/1"] = []byte("no key")
	now = now.Add(time.Hour)
	want(t, all(), errdefs.ErrInvalidArgument, "default[0].keyPaths: kbs:///default/key/1: not a PEM public key")
}

func TestLoaderURIs(t *testing.T) {
	t.Parallel()
	for uri, good := range map[string]bool{
		"kbs:///default/policy/1": true, "kbs://kbs.example/a/b/c": true, "kbs+plugin://x": true, "file:///etc/policy.json": true, "/etc/policy.json": true,
		"": false, "kbs:": false, "kbs+://x": false, "http://x": false, "etc/policy.json": false, "file://host/x": false, "/etc/../x": false, "file://": false,
	} {
		_, err := policy.NewLoader(uri, nil, policy.Refresh{})
		if (err == nil) != good {
			t.Errorf("%q: %v", uri, err)
		}
		if _, err := policy.NewLookasideLoader(uri, nil, policy.Refresh{}); (err == nil) != good {
			t.Errorf("%q: %v", uri, err)
		}
	}
	file := filepath.Join(t.TempDir(), "sigstore.yaml")
	if err := os.WriteFile(file, []byte("docker: {a.b: {sigstore: 'file:///x'}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := policy.NewLookasideLoader(file, nil, policy.Refresh{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Lookaside(t.Context()); err != nil {
		t.Error(err)
	}
}
