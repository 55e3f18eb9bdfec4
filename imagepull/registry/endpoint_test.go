// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/conf"
)

func parseConf(t *testing.T, format string, args ...any) *conf.Config {
	t.Helper()
	c, err := conf.Parse(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mirrored is a registry with two mirrors, all with the same image at the same
// repository, and the registries configuration that says so.
func mirrored(t *testing.T, first, second string) (m1, m2, primary *shelf, p pushed, config *conf.Config) {
	t.Helper()
	m1, m2, primary = newShelf(t), newShelf(t), newShelf(t)
	for _, s := range []*shelf{m1, m2, primary} {
		p = s.image(t, "a/b", "v1", "same", ocispec.Platform{})
	}
	config = parseConf(t, `
[[registry]]
location = %q
[[registry.mirror]]
location = %q
%s
[[registry.mirror]]
location = %q
%s
`, primary.host(), m1.host(), first, m2.host(), second)
	return m1, m2, primary, p, config
}

// TestMirrors has each mirror fail in each way: what is asked of whom, and that
// the image keeps the name that the user gave.
func TestMirrors(t *testing.T) {
	t.Parallel()
	away := func(s *shelf) { s.server.CloseClientConnections(); s.server.Close() }
	answer := func(code int) func(*shelf) { return func(s *shelf) { s.setGuard(status(code)) } }
	for name, tc := range map[string]struct {
		first, second string // more of the mirrors' entries
		harm          func(m1, m2, primary *shelf)
		digest        bool
		want          [3]int // requests of first, second, primary; a whole pull has 3
	}{
		"first":                    {want: [3]int{3, 0, 0}},
		"by digest":                {digest: true, want: [3]int{3, 0, 0}},
		"digest only, tag":         {first: `pull-from-mirror = "digest-only"`, want: [3]int{1, 2, 0}},
		"digest only, digest":      {first: `pull-from-mirror = "digest-only"`, digest: true, want: [3]int{3, 0, 0}},
		"tag only, tag":            {first: `pull-from-mirror = "tag-only"`, want: [3]int{2, 1, 0}},
		"tag only, digest":         {first: `pull-from-mirror = "tag-only"`, digest: true, want: [3]int{0, 3, 0}},
		"both digest only, tag":    {first: `pull-from-mirror = "digest-only"`, second: `pull-from-mirror = "digest-only"`, want: [3]int{1, 0, 2}},
		"first has nothing":        {harm: func(m1, _, _ *shelf) { m1.drop("") }, want: [3]int{2, 3, 0}},
		"first is away":            {harm: func(m1, _, _ *shelf) { away(m1) }, want: [3]int{0, 3, 0}},
		"first wants a login":      {harm: func(m1, _, _ *shelf) { answer(401)(m1) }, want: [3]int{2, 3, 0}},
		"first refuses":            {harm: func(m1, _, _ *shelf) { answer(403)(m1) }, want: [3]int{2, 3, 0}},
		"first is ill":             {harm: func(m1, _, _ *shelf) { answer(503)(m1) }, want: [3]int{1, 3, 0}},
		"first is busy":            {harm: func(m1, _, _ *shelf) { answer(429)(m1) }, want: [3]int{1, 3, 0}},
		"first is no registry":     {harm: func(m1, _, _ *shelf) { answer(204)(m1) }, want: [3]int{2, 3, 0}},
		"mirrors have no blob":     {harm: func(m1, m2, _ *shelf) { m1.drop("/blobs/"); m2.drop("/blobs/") }, want: [3]int{3, 2, 2}},
		"mirrors are away":         {harm: func(m1, m2, _ *shelf) { away(m1); away(m2) }, want: [3]int{0, 0, 3}},
		"primary is away":          {harm: func(m1, _, primary *shelf) { m1.drop("/blobs/"); away(primary) }, want: [3]int{3, 2, 0}},
		"all but the last mirrors": {harm: func(m1, _, primary *shelf) { away(m1); away(primary) }, want: [3]int{0, 3, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m1, m2, primary, p, config := mirrored(t, tc.first, tc.second)
			if tc.harm != nil {
				tc.harm(m1, m2, primary)
			}
			ref := primary.host() + "/a/b:v1"
			if tc.digest {
				ref = primary.host() + "/a/b@" + p.manifest.Digest.String()
			}
			c := client(t, registry.Options{Config: config}, m1, m2, primary)
			image, content, err := pull(t, c, ref)
			if err != nil || !bytes.Equal(content, p.content) {
				t.Fatalf("%d bytes, %v", len(content), err)
			}
			if want := primary.host() + "/a/b@" + p.manifest.Digest.String(); image.Reference != want || image.Name != ref {
				t.Errorf("reference %s, name %s", image.Reference, image.Name)
			}
			got := [3]int{len(m1.paths()), len(m2.paths()), len(primary.paths())}
			if got != tc.want {
				t.Errorf("requests: got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestMirrorErrors has all endpoints fail: one error speaks for all.
func TestMirrorErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		codes     [3]int
		class     func(error) bool
		temporary bool
		hint      string
	}{
		"nowhere":           {[3]int{404, 404, 404}, errdefs.IsNotFound, false, "check the name"},
		"a login":           {[3]int{404, 401, 404}, errdefs.IsUnauthorized, false, "set credentials for"},
		"refused":           {[3]int{401, 404, 403}, errdefs.IsPermissionDenied, false, "that may pull it"},
		"ill":               {[3]int{404, 404, 500}, errdefs.IsUnavailable, true, "try again later"},
		"a login, one ill":  {[3]int{401, 404, 503}, errdefs.IsUnauthorized, true, "set credentials for"},
		"strange, and none": {[3]int{418, 404, 404}, errdefs.IsUnknown, false, "OCI registry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m1, m2, primary, _, config := mirrored(t, "", "")
			shelves := []*shelf{m1, m2, primary}
			for i, s := range shelves {
				s.setGuard(status(tc.codes[i]))
			}
			_, _, err := pull(t, client(t, registry.Options{Config: config}, shelves...), primary.host()+"/a/b:v1")
			var e *registry.Error
			if !errors.As(err, &e) || !tc.class(err) || e.Temporary != tc.temporary || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %#v %v", e, err)
			}
			at := -1
			for _, text := range []string{"registry " + primary.host() + ": a/b:v1: ", m1.host() + "/a/b: ", m2.host() + "/a/b: ", primary.host() + "/a/b: ", tc.hint} {
				i := strings.Index(err.Error()[at+1:], text)
				if i < 0 {
					t.Errorf("no %q, or not in its place, in %v", text, err)
					continue
				}
				at += 1 + i
			}
		})
	}
}

// TestMirrorLies has a mirror that serves other bytes than the digests name.
func TestMirrorLies(t *testing.T) {
	t.Parallel()
	m1, m2, primary, p, config := mirrored(t, "", "")
	c := client(t, registry.Options{Config: config}, m1, m2, primary)
	m1.put("a/b/manifests/"+p.manifest.Digest.String(), ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`), nil)
	m1.put("a/b/blobs/"+p.layer.Digest.String(), "", []byte("shorter"), nil)
	image, content, err := pull(t, c, primary.host()+"/a/b@"+p.manifest.Digest.String())
	if err != nil || !bytes.Equal(content, p.content) {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	// Of the same size, so that only the reader of the blob can see it.
	wrong := bytes.ToUpper(p.content)
	m1.put("a/b/blobs/"+p.layer.Digest.String(), "", wrong, nil)
	for i, s := range []*shelf{m1, m2} {
		content, err = fetch(t, c, image)
		if err != nil || bytes.Equal(content, p.content) != (i == 1) {
			t.Fatalf("%d: %d bytes, %v", i, len(content), err)
		}
		if !c.Reject(image.Reference, p.layer.Digest) {
			t.Errorf("%d: nobody is left", i)
		}
		s.paths()
	}
	if content, err = fetch(t, c, image); err != nil || !bytes.Equal(content, p.content) || len(m1.paths())+len(m2.paths()) != 0 {
		t.Errorf("third: %d bytes, %v", len(content), err)
	}
	if c.Reject(image.Reference, p.layer.Digest) {
		t.Error("somebody is left")
	}
	if content, err = fetch(t, c, image); err != nil || !bytes.Equal(content, wrong) {
		t.Errorf("a new pull: %d bytes, %v", len(content), err)
	}
	if client(t, registry.Options{}, primary).Reject(image.Reference, p.layer.Digest) {
		t.Error("one that was never asked is left")
	}
}

// TestMirrorResume cuts a mirror in the middle of a blob: the next fetch, from
// the byte that is next, is answered by another.
func TestMirrorResume(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(w http.ResponseWriter, half []byte){
		"cut": func(w http.ResponseWriter, half []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(2*len(half)))
			_, _ = w.Write(half)
		},
		"short": func(w http.ResponseWriter, half []byte) {
			_, _ = w.Write(half)
			_ = http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m1, m2, primary, p, config := mirrored(t, "", "")
			half := p.content[:len(p.content)/2]
			c := client(t, registry.Options{Config: config, StallTimeout: 5 * time.Second}, m1, m2, primary)
			image, err := c.Resolve(t.Context(), primary.host()+"/a/b:v1", "")
			if err != nil {
				t.Fatal(err)
			}
			m1.setGuard(func(w http.ResponseWriter, _ *http.Request) bool { cut(w, half); return false })
			rc, err := c.Fetch(t.Context(), image.Reference, p.layer, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			_ = rc.Close()
			var e *registry.Error
			if !bytes.Equal(got, half) || (name == "cut") != (errors.As(err, &e) && e.Temporary && strings.Contains(err.Error(), m1.host()+"/a/b: ")) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			m1.paths()
			rc, err = c.Fetch(t.Context(), image.Reference, p.layer, int64(len(got)))
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(rc)
			_ = rc.Close()
			if got = append(got, rest...); err != nil || !bytes.Equal(got, p.content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n1, n2 := len(m1.paths()), len(m2.paths()); n1 != 0 || n2 != 1 {
				t.Errorf("requests: %d and %d", n1, n2)
			}
		})
	}
}

// TestNames resolves what has no registry, and what is to be found elsewhere.
func TestNames(t *testing.T) {
	t.Parallel()
	one, two := newShelf(t), newShelf(t)
	p := one.image(t, "only/here", "latest", "one", ocispec.Platform{})
	q := two.image(t, "x/app", "latest", "two", ocispec.Platform{})
	two.image(t, "only/here", "latest", "another", ocispec.Platform{})
	two.image(t, "app", "v1", "app", ocispec.Platform{})
	config := parseConf(t, `
unqualified-search-registries = [%[1]q, %[2]q]
[aliases]
"alias" = "%[2]s/x/app"
[[registry]]
prefix = "moved.example/old"
location = "%[2]s/x"
[[registry]]
prefix = "*.wild.example"
location = "%[1]s"
[[registry]]
prefix = "%[1]s/secret"
blocked = true
`, one.host(), two.host())
	c := client(t, registry.Options{Config: config}, one, two)
	for ref, want := range map[string]struct {
		name, text string
		class      func(error) bool
		manifest   ocispec.Descriptor
	}{
		"only/here":                     {name: one.host() + "/only/here:latest", manifest: p.manifest},
		"app:v1":                        {name: two.host() + "/app:v1"},
		"alias":                         {name: two.host() + "/x/app:latest", manifest: q.manifest},
		"moved.example/old/app":         {name: "moved.example/old/app:latest", manifest: q.manifest},
		"a.wild.example/only/here":      {name: "a.wild.example/only/here:latest", manifest: p.manifest},
		"a.b.WILD.example:77/only/here": {name: "a.b.wild.example:77/only/here:latest", manifest: p.manifest},
		one.host() + "/app:v1":          {class: errdefs.IsNotFound, text: "registry " + one.host() + ": app:v1: not there"},
		"nowhere/at/all":                {class: errdefs.IsNotFound, text: "in none of the registries that are searched: registry " + one.host()},
		one.host() + "/secret/x":        {class: errdefs.IsPermissionDenied, text: "is blocked by the entry with prefix \"" + one.host() + "/secret\" (line 11) of the registries configuration"},
		"secret/x":                      {class: errdefs.IsNotFound, text: "is blocked by"},
	} {
		image, content, err := pull(t, c, ref)
		if want.class != nil {
			if !want.class(err) || !strings.Contains(err.Error(), want.text) {
				t.Errorf("%s: got %v", ref, err)
			}
			continue
		}
		if err != nil || image.Name != want.name || len(content) == 0 || want.manifest.Digest != "" && want.manifest.Digest != image.Manifest {
			t.Errorf("%s: got %q, %d bytes, %v", ref, image.Name, len(content), err)
		}
	}
	// One that cannot be asked is no reason to take another's.
	one.server.CloseClientConnections()
	one.server.Close()
	if _, _, err := pull(t, c, "only/here"); !errdefs.IsUnavailable(err) {
		t.Errorf("first is away: %v", err)
	}
}

// TestNamespace sends the parameter that tells a proxying registry whose image
// is meant.
func TestNamespace(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.image(t, "a/b", "v1", "x", ocispec.Platform{})
	c := client(t, registry.Options{Config: parseConf(t, `
[[registry]]
location = "far.example"
[[registry.mirror]]
location = %q
namespace-proxy = "far.example"
`, s.host())}, s)
	if _, _, err := pull(t, c, "far.example/a/b:v1"); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if diff := cmp.Diff("far.example", r.URL.Query().Get("ns")); diff != "" {
			t.Errorf("%s: %s", r.URL, diff)
		}
	}
}
