// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	t.Parallel()
	tests := map[string]publish.Reference{
		"reg.example/app:v1":                  {Registry: "reg.example", Repository: "app", Tag: "v1"},
		"127.0.0.1:5000/a/b:v1":               {Registry: "127.0.0.1:5000", Repository: "a/b", Tag: "v1"},
		"localhost/app:v1":                    {Registry: "localhost", Repository: "app", Tag: "v1"},
		"[::1]:5000/app:v1":                   {Registry: "[::1]:5000", Repository: "app", Tag: "v1"},
		"docker.io/alpine:3":                  {Registry: "docker.io", Repository: "library/alpine", Tag: "3"},
		"docker.io/some/one:3":                {Registry: "docker.io", Repository: "some/one", Tag: "3"},
		"reg.example/app@" + someDigest:       {Registry: "reg.example", Repository: "app", Digest: someDigest},
		"reg.example/app:v1@" + someDigest:    {Registry: "reg.example", Repository: "app", Digest: someDigest},
		"oci:dir":                             {Layout: "dir"},
		"oci:/some/dir:v1":                    {Layout: "/some/dir", Tag: "v1"},
		"oci:/go/mod@v1/dir:v1":               {Layout: "/go/mod@v1/dir", Tag: "v1"},
		"oci:dir@" + someDigest:               {Layout: "dir", Digest: someDigest},
		"oci:dir:registry.example/app:latest": {Layout: "dir", Tag: "registry.example/app:latest"},
	}
	for text, want := range tests {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			got, err := publish.ParseReference(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"":                          "names no registry",
		"alpine":                    "docker.io/library/alpine",
		"alpine:3":                  "docker.io/library/alpine:3",
		"some/one:3":                "docker.io/some/one:3",
		"reg.example/app":           "write reg.example/app:latest",
		"reg.example/App:v1":        "small letters",
		"reg.example/app:v 1":       "invalid tag",
		"reg.example/app@sha256:12": "invalid digest",
		"reg.example/":              "invalid repository",
		"docker://reg.example/a:b":  "leave out docker://",
		"https://reg.example/a:b":   "unknown scheme",
		"oci:":                      "names no folder",
		"oci:dir:":                  "is no tag",
		"oci:dir:a tag":             "is no tag",
		"oci:dir@sha256:12":         "64 hexadecimal digits",
	}
	for text, want := range tests {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			_, err := publish.ParseReference(text)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want InvalidArgument with %q", err, want)
			}
		})
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"reg.example/app:v1", "oci:dir:v1", "oci:dir@" + someDigest, "[::1]:5000/a@" + someDigest, "oci:a@sha:b:c", "docker.io/x:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := publish.ParseReference(s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		again, err := publish.ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q became %+v, written %q, read %+v, %v", s, ref, ref, again, err)
		}
	})
}
