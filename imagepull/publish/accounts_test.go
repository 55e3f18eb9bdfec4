// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

const (
	passwdKey = "containerd.io/snapshot/coffer.passwd"
	groupKey  = "containerd.io/snapshot/coffer.group"
)

// entry is a file in a layer; without content and link it is a folder, and its
// content "-" is none.
type entry struct{ name, content, link string }

func tarOf(t *testing.T, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(e.content)), Linkname: e.link}
		switch {
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		case e.content == "":
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// newUserImage writes an image with a USER, of plain and gzipped tar in turn.
func newUserImage(t *testing.T, to oras.Target, user string, layers ...string) ocispec.Descriptor {
	t.Helper()
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: ocispec.ImageConfig{User: user},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(t, to, ocispec.MediaTypeImageConfig, config),
	}
	for i, l := range layers {
		mediaType, data := ocispec.MediaTypeImageLayer, []byte(l)
		if i%2 == 1 {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write(data)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			mediaType, data = ocispec.MediaTypeImageLayerGzip, b.Bytes()
		}
		desc := push(t, to, mediaType, data)
		desc.Annotations = map[string]string{passwdKey: "of the source:x:1:1::/:\n"}
		manifest.Layers = append(manifest.Layers, desc)
	}
	return pushJSON(t, to, ocispec.MediaTypeImageManifest, manifest)
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	const passwd = "root:$6$hash:0:0:The Boss:/root:/bin/sh\nbad\nlong:x:4294967295:1::/:\napp:x:7:8:App,,,:/home/app:/bin/false\n"
	const told = "root:x:0:0::/:\napp:x:7:8::/:\n"
	const group = "root:x:0:\nstaff:!:50:app,root\napp:x:8\n"
	const toldGroup = "root:x:0:\nstaff:x:50:app,root\napp:x:8:\n"
	base := tarOf(t, entry{name: "./etc/"}, entry{name: "./etc/passwd", content: passwd}, entry{name: "./etc/group", content: group})
	var many, others strings.Builder
	for i := range 400 {
		fmt.Fprintf(&many, "user%d:x:%d:%d::/:\n", i, 1000+i, 1000+i)
		fmt.Fprintf(&others, "user%d,", i)
	}
	for name, tc := range map[string]struct {
		mode          publish.Accounts
		user          string
		layers        []string
		passwd, group string
		note          string
	}{
		"a name":           {"", "app", []string{base}, told, toldGroup, ""},
		"a group's name":   {"", "7:staff", []string{base}, told, toldGroup, ""},
		"a number":         {"", "7:8", []string{base}, "", "", ""},
		"none":             {"", "", []string{base}, "", "", ""},
		"always":           {publish.AllAccounts, "", []string{base}, told, toldGroup, ""},
		"never":            {publish.NoAccounts, "app", []string{base}, "", "", ""},
		"unchanged on top": {"", "app", []string{base, tarOf(t, entry{name: "a", content: "a"})}, told, toldGroup, ""},
		"replaced": {"", "new", []string{base, tarOf(t, entry{name: "etc/passwd", content: "new:x:1:8::/:\n"})},
			"new:x:1:8::/:\n", toldGroup, ""},
		"whiteout":       {"", "app", []string{base, tarOf(t, entry{name: "etc/.wh.passwd", content: "-"})}, "", toldGroup, `user "app"`},
		"whiteout first": {"", "app", []string{base, tarOf(t, entry{name: "etc/.wh.group", content: "-"}, entry{name: "etc/group", content: "app:x:9:"})}, told, "app:x:9:\n", ""},
		"opaque folder":  {"", "app", []string{base, tarOf(t, entry{name: "etc/passwd", content: "app:x:7:7::/:"}, entry{name: "etc/.wh..wh..opq", content: "-"})}, "app:x:7:7::/:\n", "", ""},
		"opaque root":    {"", "app", []string{base, tarOf(t, entry{name: ".wh..wh..opq", content: "-"})}, "", "", `user "app"`},
		"removed folder": {"", "7:staff", []string{base, tarOf(t, entry{name: ".wh.etc", content: "-"})}, "", "", `group "staff"`},
		"link":           {"", "app", []string{base, tarOf(t, entry{name: "etc/passwd", link: "/usr/passwd"})}, "", toldGroup, `user "app"`},
		"linked folder":  {"", "app", []string{base, tarOf(t, entry{name: "etc", link: "usr/etc"})}, "", "", `user "app"`},
		"no tar":         {"", "app", []string{base, "no tar"}, told, toldGroup, ""},
		"too many": {"", "app", []string{base, tarOf(t, entry{name: "etc/passwd", content: many.String() + passwd}, entry{name: "etc/group", content: group + "all:x:60:" + others.String() + "app\n"})},
			"app:x:7:8::/:\n", "staff:x:50:app\napp:x:8:\nall:x:60:app\n", ""},
		"too long":  {"", strings.Repeat("n", 5000), []string{tarOf(t, entry{name: "etc/passwd", content: strings.Repeat("n", 5000) + ":x:1:1::/:"})}, "", "", ""},
		"not utf-8": {"", "app", []string{tarOf(t, entry{name: "etc/passwd", content: "\xff:x:1:1::/:\napp\x01:x:1:1::/:\napp:x:1:1::/:\n"})}, "app:x:1:1::/:\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dst := "oci:"+t.TempDir()+":plain", "oci:"+t.TempDir()+":enc"
			source := target(t, src)
			tag(t, source, newUserImage(t, source, tc.user, tc.layers...), "plain")
			result, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}, Accounts: tc.mode})
			if err != nil {
				t.Fatal(err)
			}
			layers := fetchJSON[ocispec.Manifest](t, target(t, dst), result.Image).Layers
			for i, l := range layers {
				want := map[string]string{passwdKey: "", groupKey: ""}
				if i == len(layers)-1 {
					want = map[string]string{passwdKey: tc.passwd, groupKey: tc.group}
				}
				got := map[string]string{passwdKey: l.Annotations[passwdKey], groupKey: l.Annotations[groupKey]}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("layer %d: %s", i, diff)
				}
			}
			if notes := strings.Join(result.Notes, "\n"); (notes == "") != (tc.note == "") || !strings.Contains(notes, tc.note) {
				t.Errorf("notes %q, want %q", notes, tc.note)
			}
		})
	}
}

// TestAccountsAreRead damages nothing: a layer that two images share is read once
// and told for the one that asks.
func TestAccountsOfAnIndex(t *testing.T) {
	t.Parallel()
	src, dst := newRegistry(t)+"/users:plain", "oci:"+t.TempDir()+":enc"
	source := target(t, src)
	layer := tarOf(t, entry{name: "etc/passwd", content: "app:x:7:8::/:\n"})
	named, numeric := newUserImage(t, source, "app", layer), newUserImage(t, source, "7", layer)
	tag(t, source, pushJSON(t, source, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{named, numeric},
	}), "plain")
	result, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}})
	if err != nil {
		t.Fatal(err)
	}
	if result.Accounts != 1 || len(result.Layers) != 1 {
		t.Errorf("got %+v", result)
	}
	var told []string
	for _, m := range fetchJSON[ocispec.Index](t, target(t, dst), result.Image).Manifests {
		told = append(told, fetchJSON[ocispec.Manifest](t, target(t, dst), m).Layers[0].Annotations[passwdKey])
	}
	if !slices.Equal(told, []string{"app:x:7:8::/:\n", ""}) {
		t.Errorf("told %q", told)
	}
}

// FuzzAccounts wants annotations that containerd takes, whatever is in the files.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\napp:x:7:8:App:/:\n", "root:x:0:\nstaff:x:50:app,other\napp:x:8\n", "app:staff")
	f.Add(strings.Repeat("user:x:1:1::/:\n", 400), "all:x:60:"+strings.Repeat("user,", 1000), "1")
	f.Add("\xff:x:1:1::/:", ":x:1:", ":")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		for key, text := range publish.ToldAccounts(passwd, group, user) {
			if len(key)+len(text) > 4096 || !utf8.ValidString(text) {
				t.Errorf("%s: %q", key, text)
			}
			fields := map[string]int{passwdKey: 7, groupKey: 4}[key]
			for line := range strings.Lines(text) {
				if strings.Count(line, ":") != fields-1 || !strings.HasSuffix(line, "\n") || strings.HasPrefix(line, ":") {
					t.Errorf("%s: line %q", key, line)
				}
			}
		}
	})
}
