// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const someDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func TestParseRequest(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", maxRepository)
	for address, want := range map[string]source{
		"/v2/a/blobs/" + string(someDigest):                                  {"", "a"},
		"/v2/library/a-b__c.d/blobs/" + string(someDigest) + "?ns=docker.io": {"docker.io", "library/a-b__c.d"},
		"/v2/a/blobs/blobs/" + string(someDigest) + "?ns=R.example:5000":     {"r.example:5000", "a/blobs"},
		"/v2/a/blobs/" + string(someDigest) + "?ns=[::1]:5000&other=1":       {"[::1]:5000", "a"},
		"/v2/a/blobs/sha256%3A" + someDigest.Encoded():                       {"", "a"},
		"/v2/" + long + "/blobs/" + string(someDigest):                       {"", long},
		"/v2/a/blobs/sha512:" + strings.Repeat("0", 128):                     {"", "a"},
		"/v2/a---b/blobs/" + string(someDigest):                              {"", "a---b"},
		"/v2/a/manifests/latest":                                             {},
		"/v2/a/manifests/" + string(someDigest):                              {},
		"/v2/a/tags/list":                                                    {},
		"/v2/a/blobs/uploads/":                                               {},
		"/v2/blobs/" + string(someDigest):                                    {},
		"/v2//blobs/" + string(someDigest):                                   {},
		"/v2/../blobs/" + string(someDigest):                                 {},
		"/v2/a/../b/blobs/" + string(someDigest):                             {},
		"/v2/a%2F..%2Fb/blobs/" + string(someDigest):                         {},
		"/v2/A/blobs/" + string(someDigest):                                  {},
		"/v2/a___b/blobs/" + string(someDigest):                              {},
		"/v2/a-/blobs/" + string(someDigest):                                 {},
		"/v2/a" + long + "/blobs/" + string(someDigest):                      {},
		"/v2/a/blobs/" + string(someDigest) + "/":                            {},
		"/v2/a/blobs/" + string(someDigest)[:70]:                             {},
		"/v2/a/blobs/" + strings.ToUpper(string(someDigest)):                 {},
		"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e":                   {},
		"/v2/a/blobs/sha384:" + strings.Repeat("0", 96):                      {},
		"/v2/a/blobs/" + string(someDigest) + "?ns=a&ns=b":                   {},
		"/v2/a/blobs/" + string(someDigest) + "?ns=user@r.example":           {},
		"/v2/a/blobs/" + string(someDigest) + "?ns=r.example/a":              {},
		"/v2/a/blobs/" + string(someDigest) + "?ns=%zz":                      {},
		"/v1/a/blobs/" + string(someDigest):                                  {},
		"/a/blobs/" + string(someDigest):                                     {},
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := parseRequest(u)
		if ok != (want != source{}) || ok && got.source != want {
			t.Errorf("%s: got %+v, %v", address, got, ok)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("/v2/library/a/blobs/"+string(someDigest), "ns=docker.io")
	f.Add("/v2/a/../b/blobs/sha512:"+strings.Repeat("0", 128), "ns=[::1]:5000&ns=")
	f.Add("/v2/a%2fb/blobs/"+string(someDigest), "ns=%41")
	f.Fuzz(func(t *testing.T, path, query string) {
		r, ok := parseRequest(&url.URL{Path: path, RawQuery: query})
		if !ok {
			return
		}
		// What is made of it is one file below its folder, and a URL of the
		// registry's that says the same as the request.
		file := (&shelf{root: "/r"}).path(&blob{digest: r.digest, size: 1})
		if filepath.Clean(file) != file || filepath.Dir(filepath.Dir(file)) != "/r/blobs" {
			t.Errorf("file %q", file)
		}
		host := r.source.registry
		if host == "" {
			host = "r.example"
		}
		want := "/v2/" + r.source.repository + "/blobs/" + r.digest.String()
		u, err := url.Parse("https://" + host + want)
		if err != nil || u.Host != host || u.User != nil || u.Path != want || u.RawPath != "" || u.RawQuery != "" || u.Fragment != "" || want != path {
			t.Errorf("%q, %q became %+v: %+v, %v", path, query, r, u, err)
		}
	})
}

func TestParseRange(t *testing.T) {
	t.Parallel()
	whole := span{0, 10}
	for _, tc := range []struct {
		header, condition    string
		want                 span
		partial, satisfiable bool
	}{
		{"", "", whole, false, true},
		{"bytes=0-9", "", whole, true, true},
		{"bytes=3-", "", span{3, 10}, true, true},
		{"bytes=3-3", "", span{3, 4}, true, true},
		{"bytes=3-99999999999999999999999999", "", span{3, 10}, true, true},
		{"bytes=-3", "", span{7, 10}, true, true},
		{"bytes=-30", "", whole, true, true},
		{"bytes=-0", "", span{10, 10}, true, false},
		{"bytes=10-", "", whole, true, false},
		{"bytes=99999999999999999999999999-", "", whole, true, false},
		{"bytes=3-2", "", whole, false, true},
		{"bytes=1-2,4-5", "", whole, false, true},
		{"bytes=-", "", whole, false, true},
		{"bytes=+1-2", "", whole, false, true},
		{"lines=1-2", "", whole, false, true},
		{"bytes=3-", "tag", span{3, 10}, true, true},
		{"bytes=3-", "other", whole, false, true},
	} {
		h := http.Header{}
		h.Set("Range", tc.header)
		h.Set("If-Range", tc.condition)
		got, partial, satisfiable := parseRange(h, "tag", 10)
		if got != tc.want || partial != tc.partial || satisfiable != tc.satisfiable {
			t.Errorf("%q: got %v, %v, %v", tc.header, got, partial, satisfiable)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	f.Add("bytes=0-9", int64(10))
	f.Add("bytes=-3", int64(0))
	f.Add("bytes=9223372036854775807-9223372036854775808", int64(1<<40))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 || size > 1<<60 {
			return
		}
		s, partial, satisfiable := parseRange(http.Header{"Range": {header}}, "", size)
		if satisfiable && (s.first < 0 || s.end > size || s.end < s.first) || !partial && s != (span{0, size}) || partial && satisfiable && s.end == s.first {
			t.Errorf("%q of %d: %v, %v, %v", header, size, s, partial, satisfiable)
		}
	})
}
