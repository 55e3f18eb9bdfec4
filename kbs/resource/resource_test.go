// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in, canonical, request string
		want                   URI
	}{
		{"kbs:///default/key/1", "kbs:///default/key/1", "/kbs/v0/resource/default/key/1", URI{Plugin: "resource", Path: "default/key/1"}},
		{"kbs+resource:///a/b/c", "kbs:///a/b/c", "/kbs/v0/resource/a/b/c", URI{Plugin: "resource", Path: "a/b/c"}},
		{"KBS://Host.example:8080/a", "kbs://Host.example:8080/a", "/kbs/v0/resource/a", URI{Plugin: "resource", Authority: "Host.example:8080", Path: "a"}},
		{"kbs://[::1]:1/a", "kbs://[::1]:1/a", "/kbs/v0/resource/a", URI{Plugin: "resource", Authority: "[::1]:1", Path: "a"}},
		{"kbs+pkcs11:///w/x?mode=1&b=/?", "kbs+pkcs11:///w/x?mode=1&b=/?", "/kbs/v0/pkcs11/w/x?mode=1&b=/?", URI{Plugin: "pkcs11", Path: "w/x", Query: "mode=1&b=/?"}},
		{"kbs:///a%20b/c?", "kbs:///a%20b/c", "/kbs/v0/resource/a%20b/c", URI{Plugin: "resource", Path: "a%20b/c"}},
		{"kbs:///.hidden/...", "kbs:///.hidden/...", "/kbs/v0/resource/.hidden/...", URI{Plugin: "resource", Path: ".hidden/..."}},
	} {
		got, err := ParseURI(c.in)
		if err != nil {
			t.Errorf("ParseURI(%q): %v", c.in, err)
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("ParseURI(%q): %s", c.in, d)
		}
		if got.String() != c.canonical || got.RequestPath() != c.request {
			t.Errorf("ParseURI(%q) is %q, requests %q", c.in, got, got.RequestPath())
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                    "no scheme",
		"/default/key/1":                      "no scheme",
		"kbs:/a/b/c":                          "no scheme",
		"https://host/a":                      "scheme is neither",
		"kbs+:///a":                           "no plugin name",
		"kbs+a/b:///a":                        "plugin name",
		"kbs+-x:///a":                         "plugin name",
		"kbs://":                              "no path",
		"kbs:///":                             "no path",
		"kbs://host":                          "no path",
		"kbs://host?q":                        "no path",
		"kbs://user@host/a":                   "authority",
		"kbs:///a//b":                         "empty segment",
		"kbs:///a/":                           "empty segment",
		"kbs:///a/../b":                       "dot segment",
		"kbs:///a/%2e%2E/b":                   "dot segment",
		"kbs:///./b":                          "dot segment",
		"kbs:///a#b":                          "fragment",
		"kbs:///a b":                          "percent-encoded",
		"kbs:///a\r\nX: y":                    "percent-encoded",
		"kbs:///ä":                            "percent-encoded",
		"kbs:///a?b=\x00":                     "query",
		"kbs:///a%2":                          "two hex digits",
		"kbs:///a%zz":                         "two hex digits",
		"kbs:///" + strings.Repeat("x", 5000): "longer than",
	} {
		got, err := ParseURI(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseURI(%q) = %v, %v; want error with %q", shorten(in), got, err, want)
			continue
		}
		if len(err.Error()) > 1000 {
			t.Errorf("ParseURI(%q): error has %d bytes", shorten(in), len(err.Error()))
		}
	}
}

func TestID(t *testing.T) {
	t.Parallel()
	id, err := ParseID("default/image-kek_2/v1.0")
	if err != nil {
		t.Fatal(err)
	}
	if id != (ID{"default", "image-kek_2", "v1.0"}) || id.String() != "default/image-kek_2/v1.0" {
		t.Errorf("parsed %+v", id)
	}
	if got := id.URI().String(); got != "kbs:///default/image-kek_2/v1.0" {
		t.Errorf("URI %q", got)
	}
	for _, in := range []string{
		"", "a", "a/b", "a/b/c/d", "/a/b/c", "a//c", "a/b/", ".a/b/c", "a/../c", "a/b:c/d", "a/b%20/d", "a/b/ä",
		"a/b/c\n", "a/b/" + strings.Repeat("x", 256),
	} {
		if got, err := ParseID(in); err == nil {
			t.Errorf("ParseID(%q) = %v, want error", in, got)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"kbs:///a/b/c", "kbs+p://h:1/a?q=1", "kbs:///a%20/b", "kbs://[::1]/a", "kbs+://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		again, err := ParseURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q parses to %+v, its text to %+v, %v", s, u, again, err)
		}
		for _, c := range []byte(u.RequestPath()) {
			if c <= ' ' || c >= 0x7f || c == '#' {
				t.Fatalf("%q requests %q", s, u.RequestPath())
			}
		}
	})
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"a/b/c", "default/key/1.0", "../../etc", "a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("%q parses to %q", s, id)
		}
		u, err := ParseURI(id.URI().String())
		if err != nil || u.Path != s || u.RequestPath() != "/kbs/v0/resource/"+s {
			t.Fatalf("%q has URI %+v, %v", s, u, err)
		}
	})
}
