// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
)

func describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// manifest writes a config and a manifest with it, and returns both digests.
func (s store) manifest(ctx context.Context, t testing.TB, author string, layers ...string) (manifest, configDigest digest.Digest) {
	t.Helper()
	c := config(t, author, layers...)
	configDigest = s.write(ctx, t, c, nil)
	return s.write(ctx, t, encode(t, ocispec.Manifest{Config: describe(c)}), map[string]string{configRef: configDigest.String()}), configDigest
}

// index writes an index. Entries are of this machine's platform, but those
// whose digests are in foreign.
func (s store) index(ctx context.Context, t *testing.T, foreign []digest.Digest, manifests ...digest.Digest) digest.Digest {
	t.Helper()
	labels, index := map[string]string{}, ocispec.Index{}
	for i, m := range manifests {
		here := platforms.DefaultSpec()
		if slices.Contains(foreign, m) {
			here = ocispec.Platform{OS: "plan9", Architecture: "mips"}
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{Digest: m, Size: 1, Platform: &here})
		labels[fmt.Sprint("containerd.io/gc.ref.content.m.", i)] = m.String()
	}
	return s.write(ctx, t, encode(t, index), labels)
}

func (s store) name(ctx context.Context, t testing.TB, name string, target digest.Digest) {
	t.Helper()
	if _, err := s.images.Create(ctx, images.Image{Name: name, Target: ocispec.Descriptor{Digest: target, MediaType: "m", Size: 1}}); err != nil {
		t.Fatal(err)
	}
}

// found lists what ImagesOf tells, in lines.
func found(ctx context.Context, f *imagefinder.Finder, layers ...string) ([]string, error) {
	got := []string{}
	err := f.ImagesOf(ctx, chain(layers...), func(name string, manifest, index digest.Digest) error {
		got = append(got, strings.TrimSpace(fmt.Sprintln(name, manifest, index)))
		return nil
	})
	return got, err
}

func wantFound(t *testing.T, ctx context.Context, f *imagefinder.Finder, layers []string, want ...string) { //nolint:revive // t first, as in all helpers
	t.Helper()
	got, err := found(ctx, f, layers...)
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %v %s", layers, err, diff)
	}
}

func TestImagesOf(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	a, _ := s.manifest(ctx, t, "a", "1", "2")
	b, _ := s.manifest(ctx, t, "b", "1", "2") // the same layers, another config
	above, _ := s.manifest(ctx, t, "above", "1", "2", "3")
	foreign, _ := s.manifest(ctx, t, "foreign", "1", "2")
	inIndex := s.index(ctx, t, []digest.Digest{foreign}, above, b, foreign)
	nested := s.index(ctx, t, nil, s.index(ctx, t, nil, b))
	s.name(ctx, t, "r.example/a:1", a)
	s.name(ctx, t, "r.example/index:1", inIndex)
	s.name(ctx, t, "r.example/nested:1", nested)
	s.name(ctx, t, "r.example/above:1", above)
	s.name(ctx, t, "r.example/absent:1", digest.FromString("absent"))
	s.name(ctx, t, "r.example/broken:1", s.write(ctx, t, []byte("not json"), nil))
	s.name(ctx, t, "r.example/artifact:1", s.write(ctx, t, encode(t, ocispec.Manifest{Config: describe([]byte("absent config"))}), nil))
	f := s.finder()
	wantFound(t, ctx, f, []string{"1", "2"},
		"r.example/a:1 "+a.String(),
		"r.example/index:1 "+b.String()+" "+inIndex.String(),
		"r.example/nested:1 "+b.String()+" "+nested.String())
	wantFound(t, ctx, f, []string{"1", "2", "3"},
		"r.example/above:1 "+above.String(),
		"r.example/index:1 "+above.String()+" "+inIndex.String())
	wantFound(t, ctx, f, []string{"1"}) // on top of nothing
	// Another namespace has its own names.
	other := ns(t, "other")
	wantFound(t, other, f, []string{"1", "2"})
	// And a removal is seen at once.
	if err := s.images.Delete(ctx, "r.example/a:1"); err != nil {
		t.Fatal(err)
	}
	wantFound(t, ctx, f, []string{"1", "2"},
		"r.example/index:1 "+b.String()+" "+inIndex.String(),
		"r.example/nested:1 "+b.String()+" "+nested.String())
}

// A config may name as its only layer what is the chain id of several.
func TestImagesOfByForgedDiffID(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	c := encode(t, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{chain("1", "2", "3")}}})
	s.write(ctx, t, c, nil)
	m := s.write(ctx, t, encode(t, ocispec.Manifest{Config: describe(c)}), nil)
	s.name(ctx, t, "r.example/forged:1", m)
	wantFound(t, ctx, s.finder(), []string{"1", "2", "3"}, "r.example/forged:1 "+m.String())
}

// Descriptors may carry what they describe; containerd believes that.
func TestImagesOfInlineData(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	inline := func(b []byte) ocispec.Descriptor {
		d := describe(b)
		d.Data = b
		return d
	}
	m := encode(t, ocispec.Manifest{Config: inline(config(t, "inline", "1"))})
	index := s.write(ctx, t, encode(t, ocispec.Index{Manifests: []ocispec.Descriptor{inline(m)}}), nil)
	s.name(ctx, t, "r.example/inline:1", index)
	wantFound(t, ctx, s.finder(), []string{"1"}, "r.example/inline:1 "+digest.FromBytes(m).String()+" "+index.String())
}

func TestNamesThatOthersStandFor(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct {
		names []string // A, B and C are digests of manifests, config that of A and B
		want  []string // none: PermissionDenied
	}{
		"crictl pull by tag":        {[]string{"r.example/a:1 A", "r.example/a@A A", "config A"}, []string{"r.example/a:1 A"}},
		"crictl pull by digest":     {[]string{"r.example/a@A A", "config A"}, []string{"r.example/a@A A"}},
		"tag has moved on":          {[]string{"r.example/a:1 C", "r.example/a@C C", "r.example/a@A A", "config A"}, []string{"r.example/a:1 C", "r.example/a@A A"}},
		"another repository":        {[]string{"r.example/b:1 A", "r.example/a@A A"}, []string{"r.example/a@A A", "r.example/b:1 A"}},
		"another port":              {[]string{"r.example:5/a:1 A", "r.example/a@A A"}, []string{"r.example/a@A A", "r.example:5/a:1 A"}},
		"tag and digest":            {[]string{"r.example/a:1 A", "r.example/a:2@A A"}, []string{"r.example/a:1 A", "r.example/a:2@A A"}},
		"the id alone":              {[]string{"config A"}, nil},
		"the id beside another":     {[]string{"config A", "r.example/c:1 C"}, nil},
		"two manifests, one config": {[]string{"config A", "r.example/b:1 B"}, []string{"r.example/b:1 B"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s, ctx := newStore(t), ns(t, "default")
			a, configA := s.manifest(ctx, t, "a", "1")
			b := s.write(ctx, t, encode(t, ocispec.Manifest{Config: describe(config(t, "a", "1")), Annotations: map[string]string{"b": "b"}}), nil)
			c, _ := s.manifest(ctx, t, "c", "1")
			fill := strings.NewReplacer("A", a.String(), "B", b.String(), "C", c.String(), "config", configA.String()).Replace
			for _, n := range tc.names {
				name, target, _ := strings.Cut(fill(n), " ")
				s.name(ctx, t, name, digest.Digest(target))
			}
			if tc.want == nil {
				_, err := found(ctx, s.finder(), "1")
				if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "image "+configA.String()+" has no other name") {
					t.Errorf("got %v", err)
				}
				return
			}
			want := []string{}
			for _, w := range tc.want {
				want = append(want, fill(w))
			}
			wantFound(t, ctx, s.finder(), []string{"1"}, want...)
		})
	}
}

func TestImagesAreReadOnce(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	const n = 20
	for i := range n {
		m, _ := s.manifest(ctx, t, fmt.Sprint(i), fmt.Sprint(i))
		s.name(ctx, t, fmt.Sprint("r.example/a:", i), m)
	}
	f := s.finder()
	for i := range n {
		if got, err := found(ctx, f, fmt.Sprint(i)); err != nil || len(got) != 1 {
			t.Error(got, err)
		}
	}
	if *s.reads != 2*n {
		t.Errorf("%d reads, want a manifest and a config of each of %d images", *s.reads, n)
	}
	// What was missing is looked for again.
	c := config(t, "late", "late")
	s.name(ctx, t, "r.example/late:1", s.write(ctx, t, encode(t, ocispec.Manifest{Config: describe(c)}), nil))
	wantFound(t, ctx, f, []string{"late"})
	s.write(ctx, t, c, nil)
	if got, err := found(ctx, f, "late"); err != nil || len(got) != 1 {
		t.Error(got, err)
	}
}

// away is a containerd that answers nothing.
type away struct{ imagefinder.Content }

func (away) List(context.Context, ...string) ([]images.Image, error) {
	return nil, errors.New("no answer")
}

func (away) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return nil, errors.New("no answer")
}

// What may hide an image is an error, and so is what ends the search.
func TestImagesOfErrors(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	m, _ := s.manifest(ctx, t, "a", "1")
	s.name(ctx, t, "r.example/a:1", m)
	stop := errors.New("stop")
	if err := s.finder().ImagesOf(ctx, chain("1"), func(string, digest.Digest, digest.Digest) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	if _, err := found(t.Context(), s.finder(), "1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a namespace: %v", err)
	}
	for what, f := range map[string]*imagefinder.Finder{
		"list":    imagefinder.New(s.db.ContentStore(), away{}, imagefinder.Options{}),
		"content": imagefinder.New(away{}, s.images, imagefinder.Options{}),
	} {
		if _, err := found(ctx, f, "1"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.name(ctx, t, "r.example/huge:1", s.write(ctx, t, make([]byte, 8<<20+1), nil))
	if _, err := found(ctx, s.finder(), "1"); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "r.example/huge:1") {
		t.Error(err)
	}
	if err := s.images.Delete(ctx, "r.example/huge:1"); err != nil {
		t.Fatal(err)
	}
	many := make([]digest.Digest, 300)
	for i := range many {
		many[i] = digest.FromString(fmt.Sprint(i))
	}
	s.name(ctx, t, "r.example/many:1", s.index(ctx, t, nil, many...))
	if _, err := found(ctx, s.finder(), "1"); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "r.example/many:1") {
		t.Error(err)
	}
}

// BenchmarkImagesOf is what a container's snapshot costs with a policy, among
// 1,000 images, without the way to containerd and back.
func BenchmarkImagesOf(b *testing.B) {
	s, ctx := newStore(b), namespaces.WithNamespace(b.Context(), "k8s.io")
	const n = 1000
	for i := range n {
		m, _ := s.manifest(ctx, b, fmt.Sprint(i), fmt.Sprint(i))
		s.name(ctx, b, fmt.Sprint("r.example/a:", i), m)
	}
	f := s.finder()
	for i := 0; b.Loop(); i++ {
		if got, err := found(ctx, f, fmt.Sprint(i%n)); err != nil || len(got) != 1 {
			b.Fatal(got, err)
		}
	}
}
