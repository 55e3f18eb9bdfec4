// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package conf_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/imagepull/registry/conf"
)

const whole = `# all that the format has
unqualified-search-registries = ["docker.io", "registry.example:5000"]
short-name-mode = "permissive"
credential-helpers = ["containers-auth.json", "secretservice"]
additional-layer-store-auth-helper = "podman-login"

[[registry]]
prefix = "example.com/foo"
location = "internal.example/bar/"
insecure = true

[[registry.mirror]]
location = "mirror.example"
[[registry.mirror]]
location = "mirror.example:5000/proxy"
insecure = true
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"
namespace-proxy = "example.com"

[[registry]]
location = "example.com/foo/bar"

[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "mirror.example/wild"

[[registry]]
prefix = "b.wild.example"

[[registry]]
location = "EVIL.example"
blocked = true

[[registry]]
prefix = "moved.example"
location = "there.example"
insecure = true
[[registry.mirror]]
location = "near.example/p"

[[registry]]
prefix = "index.docker.io/library"
location = "hub.example/library"
mirror-by-digest-only = true
[[registry.mirror]]
location = "near.example/library"

[aliases]
"busybox" = "docker.io/busybox"
"fedora/tools" = "registry.example:5000/tools/fedora"
"gone" = ""
`

func parse(t *testing.T, s string) *conf.Config {
	t.Helper()
	c, err := conf.Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// flat is an endpoint as one word: name, then ! insecure, m mirror, t tags, d digests.
func flat(list []conf.Endpoint) []string {
	var out []string
	for _, e := range list {
		s := e.Name + " "
		for _, f := range []struct {
			is   bool
			name string
		}{{e.Insecure, "!"}, {e.Mirror, "m"}, {e.Tags, "t"}, {e.Digests, "d"}, {e.Namespace != "", "n=" + e.Namespace}} {
			if f.is {
				s += f.name
			}
		}
		out = append(out, s)
	}
	return out
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	c := parse(t, whole)
	for name, want := range map[string][]string{
		"other.example/a":               {"other.example/a td"},
		"example.com/fo":                {"example.com/fo td"},
		"example.com/foobar":            {"example.com/foobar td"},
		"notexample.com/foo/a":          {"notexample.com/foo/a td"},
		"evil2.example/example.com/foo": {"evil2.example/example.com/foo td"},
		"example.com/foo": {
			"", // mirror.example alone names no repository
		},
		"example.com/foo/a/b": {
			"mirror.example/a/b mtd", "mirror.example:5000/proxy/a/b !md", "tags.example/a/b mtn=example.com", "internal.example/bar/a/b !td",
		},
		"example.com/foo/bar/a":   {"example.com/foo/bar/a td"},
		"a.wild.example/x":        {"mirror.example/wild/x mtd", "a.wild.example/x td"},
		"a.b.wild.example:88/x/y": {"mirror.example/wild/x/y mtd", "a.b.wild.example:88/x/y td"},
		"b.wild.example/x":        {"b.wild.example/x td"},
		"wild.example/x":          {"wild.example/x td"},
		"awild.example/x":         {"awild.example/x td"},
		"a.wild.example.org/x":    {"a.wild.example.org/x td"},
		"example.com:443/foo/a/b": {
			"mirror.example/a/b mtd", "mirror.example:5000/proxy/a/b !md", "tags.example/a/b mtn=example.com", "internal.example/bar/a/b !td",
		},
		"example.com:8443/foo/a/b":  {"example.com:8443/foo/a/b td"},
		"moved.example/x":           {"near.example/p/x mtd", "there.example/x !td"},
		"moved.example:443/x":       {"near.example/p/x mtd", "there.example/x !td"},
		"moved.example:5000/x":      {"moved.example:5000/x !td"}, // another registry
		"evil.example:443/x":        nil,
		"evil.example/x":            nil,
		"evil.example:444/x":        nil,
		"evil.example.org/x":        {"evil.example.org/x td"},
		"docker.io/library/busybox": {"near.example/library/busybox md", "hub.example/library/busybox td"},
		"docker.io/me/library":      {"docker.io/me/library td"},
	} {
		got, err := c.Endpoints(name)
		if len(want) == 1 && want[0] == "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "names no repository") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if want == nil {
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), `blocked by the entry with prefix "evil.example" (line 34)`) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			continue
		}
		if diff := cmp.Diff(want, flat(got)); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	none, err := (*conf.Config)(nil).Endpoints("docker.io/library/a")
	if diff := cmp.Diff([]string{"docker.io/library/a td"}, flat(none)); err != nil || diff != "" {
		t.Errorf("no configuration: %v\n%s", err, diff)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	all := parse(t, whole)
	for _, tc := range []struct {
		config *conf.Config
		short  string
		want   []string
		text   string
	}{
		{all, "busybox", []string{"docker.io/library/busybox"}, ""},
		{all, "fedora/tools", []string{"registry.example:5000/tools/fedora"}, ""},
		{all, "gone", []string{"docker.io/library/gone", "registry.example:5000/gone"}, ""},
		{all, "a/b", []string{"docker.io/a/b", "registry.example:5000/a/b"}, ""},
		{nil, "a", []string{"docker.io/library/a"}, ""},
		{parse(t, ""), "a", []string{"docker.io/library/a"}, ""},
		{parse(t, "unqualified-search-registries = []"), "a", nil, "unqualified-search-registries is empty"},
		{parse(t, "unqualified-search-registries = [\"q.example\"]\nshort-name-mode = \"enforcing\""), "a", []string{"q.example/a"}, ""},
		{parse(t, "unqualified-search-registries = [\"q.example\", \"r.example\"]\nshort-name-mode = \"enforcing\""), "a", nil, "while q.example, r.example are searched"},
		{parse(t, "unqualified-search-registries = [\"q.example\", \"r.example\"]\nshort-name-mode = \"disabled\""), "a", []string{"q.example/a", "r.example/a"}, ""},
	} {
		got, err := tc.config.Names(tc.short)
		if tc.want == nil {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: %v, %v", tc.short, got, err)
			}
			continue
		}
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", tc.short, err, diff)
		}
	}
	if diff := cmp.Diff([]string{conf.AuthFile, "secretservice"}, all.CredentialHelpers); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for in, text := range map[string]string{
		"x = ":                                                                          "line 1, column",
		"\n[[registry]]\nlocation = 3":                                                  "line 3, column",
		"[[registry]]\nlocaton = \"a.example\"":                                         `line 2, column 1: unknown key "registry.localtion"`,
		"\n\nshort-names = true":                                                        `line 3, column 1: unknown key "short-names"`,
		"[registries.search]\nregistries = []":                                          "are version 1 of the format: write search.registries as the list unqualified-search-registries",
		"[[registry]]\n\n[[registry]]":                                                  "[[registry]] 1 (line 1): neither prefix nor location",
		"[[registry]]\nlocation=\"https://h.example\"":                                  "has a scheme",
		"[[registry]]\nlocation=\"h.example/A\"":                                        "is not host[:port][/path]",
		"[[registry]]\nlocation=\"h.example/a:tag\"":                                    "is not host[:port][/path]",
		"[[registry]]\nlocation=\"h.example/../a\"":                                     "is not host[:port][/path]",
		"[[registry]]\nlocation=\"/\"":                                                  "empty",
		"[[registry]]\nprefix=\"*.h.example/a\"":                                        "a wildcard is *.domain",
		"[[registry]]\nprefix=\"a.*.h.example\"":                                        "is not host[:port][/path]",
		"#\n[[registry]]\nlocation=\"h.example\"\n[[ registry ]]\nprefix=\"H.example\"": "[[registry]] 2 (line 4): prefix \"h.example\" is also that of another entry",
		"registry = [{prefix=\"h.example\"},{}]":                                        "[[registry]] 2: neither",
		"[[registry]]\nlocation=\"h.example\"\n[[registry.mirror]]":                     "[[registry.mirror]] 1: location: empty",
		"[[registry]]\nlocation=\"h.example\"\n[[registry.mirror]]\nlocation=\"m.example\"\npull-from-mirror=\"none\"":                            "use all, digest-only or tag-only",
		"[[registry]]\nlocation=\"h.example\"\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation=\"m.example\"\npull-from-mirror=\"all\"": "leave out one of them",
		"short-name-mode = \"ask\"":                                "use permissive, enforcing or disabled",
		"unqualified-search-registries = [\"a.example/b\"]":        "entry 1",
		"unqualified-search-registries = [\"a.example\",\"here\"]": "entry 2",
		"credential-helpers = [\"../sh\"]":                         "entry 1",
		"[aliases]\n\"a.example/b\" = \"c.example/d\"":             "is not a name without registry",
		"[aliases]\na = \"b\"":                                     "is not host/repository",
		"[aliases]\na = \"b/c\"":                                   "is not host/repository",
		"[aliases]\na = \"b.example/c:tag\"":                       "is not host/repository",
		strings.Repeat("#", 2<<20):                                 "longer than 1 MiB",
		strings.Repeat("a", 1<<19) + "=1":                          `unknown key "aaa`,
	} {
		text = strings.Replace(text, "localtion", "locaton", 1)
		_, err := conf.Parse([]byte(in))
		if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "registries configuration: ") || !strings.Contains(err.Error(), text) || len(err.Error()) > 500 {
			t.Errorf("%.100q: %v", in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole), "docker.io/library/busybox")
	f.Add([]byte("[[registry]]\nprefix=\"*.a.b\"\n[[registry.mirror]]\nlocation=\"[::1]:5\"\n"), "x.a.b:1/c")
	f.Add([]byte("registry = [{prefix=\"h.example\"}]\n[aliases]\na='b.c/d'"), "a")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		c, err := conf.Parse(b)
		if err != nil {
			return
		}
		if list, err := c.Endpoints(name); err == nil {
			primary := list[len(list)-1]
			if primary.Mirror || !primary.Tags || !primary.Digests {
				t.Errorf("%q: the last endpoint is %+v", name, primary)
			}
		}
		names, err := c.Names(name)
		if err == nil && len(names) == 0 {
			t.Errorf("%q: no names and no error", name)
		}
	})
}
