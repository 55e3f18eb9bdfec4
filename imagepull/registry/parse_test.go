// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"busybox":                          "docker.io/library/busybox:latest",
		"a/b":                              "docker.io/a/b:latest",
		"index.docker.io/busybox:1":        "docker.io/library/busybox:1",
		"localhost/a":                      "localhost/a:latest",
		"Docker.IO/busybox":                "docker.io/library/busybox:latest",
		"127.0.0.1:5000/a/b:v1":            "127.0.0.1:5000/a/b:v1",
		"h.example/a@" + someDigest:        "h.example/a@" + someDigest,
		"h.example:1/a:t@" + someDigest:    "h.example:1/a:t@" + someDigest,
		"[::1]:5000/a:t":                   "[::1]:5000/a:t",
		"":                                 "",
		"h.example/A":                      "",
		"h.example/a:":                     "",
		"h.example/a@sha256:00":            "",
		"h.example/a@sha512:" + someDigest: "",
		"h.example/../x":                   "",
		"h.example/a b":                    "",
		"user@h.example/a":                 "",
		"user:secret@h.example/a":          "",
		"h.example./a":                     "", // all these lead to h.example, past what is said of it
		"h.example..:1/a":                  "",
		".h.example/a":                     "",
		"ｈ.example/a":                      "",
		"h。example/a":                      "",
		"h%2eexample/a":                    "",
		"h.example:01/a":                   "",
		"h.example:/a":                     "",
		"h.example:x/a":                    "",
		strings.Repeat("a", 2000):          "",
	} {
		ref, err := ParseReference(in)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: got %v, %v", in, ref, err)
			}
			continue
		}
		if err != nil || ref.String() != want {
			t.Errorf("%q: got %v, %v", in, ref, err)
		}
	}
	ref, _ := ParseReference("busybox")
	if host := (endpoint{registry: ref.Registry}).host(); host != "registry-1.docker.io" {
		t.Errorf("docker.io is served by %q", host)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("%q: %s", v, got)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"busybox", "a/b:v1", "127.0.0.1:5000/a@" + someDigest, "[::1]:5000/a:t", "@", ":", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q: %v became %v, %v", s, ref, again, err)
		}
		if strings.ContainsAny(ref.Repository, " ?#%\\") || strings.Contains(ref.Repository, "..") {
			t.Errorf("%q: repository %q is not safe in a URL", s, ref.Repository)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+someDigest+`","size":2},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"schemaVersion":1}`), "")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		doc, index, err := parseDocument(body, contentType)
		if err != nil {
			return
		}
		if index {
			w := walk{client: &Client{platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}}
			if n := len(w.offers(doc.Manifests)); n > len(doc.Manifests) || len(w.offered) > 32 {
				t.Errorf("%d offers, %d platforms", n, len(w.offered))
			}
			return
		}
		if checkManifest(doc) == nil && (doc.Config == nil || len(doc.Layers) > maxLayers) {
			t.Error("accepted an unusable manifest")
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+someDigest+`"]}}`), 1)
	f.Add([]byte(`{"rootfs":{"diff_ids":[]}}`), 0)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if n < 0 || n > 10 {
			return
		}
		_, layers, err := parseConfig(body, make([]ocispec.Descriptor, n), ocispec.Platform{OS: "linux", Architecture: "amd64"})
		if err != nil {
			return
		}
		for i, l := range layers {
			if checkDigest(l.ChainID) != nil || (i > 0) != (l.Parent != "") {
				t.Errorf("layer %d: %+v", i, l)
			}
		}
	})
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/referrers/d?n=1>; rel="next"`)
	f.Add(`<https://h.example/v2/a/referrers/d?last=x&n=1>;rel=next`)
	f.Add(`<//h>; rel=next`)
	f.Fuzz(func(t *testing.T, link string) {
		a := newAsked(Reference{}, endpoint{registry: "h.example", repository: "a"}, "x")
		path, err := a.nextPage(link, "/referrers/d")
		if err == nil && path != "" && !strings.HasPrefix(path, "/referrers/d?") {
			t.Errorf("%q leads to %q", link, path)
		}
	})
}

// TestSmallEntries reads documents of the largest size whose entries are of the
// smallest: what that takes in memory is bounded.
func TestSmallEntries(t *testing.T) { //nolint:paralleltest // measures the memory of the process
	for _, entry := range []string{"{},", "null,"} {
		entries := strings.Repeat(entry, maxDocument/len(entry)-20)
		for name, read := range map[string]func([]byte) error{
			"manifests": func(b []byte) error { _, _, err := parseDocument(b, ""); return err },
			"layers":    func(b []byte) error { _, _, err := parseDocument(b, ""); return err },
			"history":   func(b []byte) error { _, _, err := parseConfig(b, nil, ocispec.Platform{}); return err },
		} {
			body := []byte(`{"schemaVersion":2,"` + name + `":[` + strings.TrimSuffix(entries, ",") + `]}`)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := read(body)
			runtime.ReadMemStats(&after)
			if took := (after.TotalAlloc - before.TotalAlloc) >> 20; !errdefs.IsInvalidArgument(err) || took > 64 {
				t.Errorf("%s of %s: %d MiB, %v", name, entry, took, err)
			}
		}
	}
	for in, want := range map[string]int{`{"layers":null}`: 0, `{"layers":[]}`: 0, `{"layers":[{},{"size":1}]}`: 2, `{"layers":{}}`: -1, `{"layers":[1]}`: -1, `{"layers":""}`: -1} {
		doc, _, err := parseDocument([]byte(in), "")
		if want < 0 != (err != nil) || err == nil && len(doc.Layers) != want {
			t.Errorf("%s: %d, %v", in, len(doc.Layers), err)
		}
	}
	config, _, err := parseConfig([]byte(`{"history":[{"created_by":"x"},{}]}`), nil, ocispec.Platform{})
	if err != nil || len(config.History) != 2 || config.History[0].CreatedBy != "x" {
		t.Errorf("%+v, %v", config.History, err)
	}
}
