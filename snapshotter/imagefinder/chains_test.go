// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

func FuzzParseChains(f *testing.F) {
	a, b := digest.FromString("a"), digest.FromString("b")
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + a + `","` + b + `"]}}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":[]}}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:1"]}}`))
	f.Add([]byte(`{"rootfs":null}`))
	f.Add([]byte(`[]`))
	f.Add(append([]byte(`{"rootfs":{"diff_ids":[`), bytes.Repeat([]byte(`"",`), 3000)...))
	f.Fuzz(func(t *testing.T, config []byte) {
		chains, err := parseChains(config)
		if err != nil && chains != nil || len(chains) > maxLayers {
			t.Errorf("got %d chain ids and %v", len(chains), err)
		}
		for _, c := range chains {
			if err := c.Validate(); err != nil {
				t.Errorf("chain id %q: %v", c, err)
			}
		}
	})
}

func TestParseChains(t *testing.T) {
	t.Parallel()
	a, b := digest.FromString("a"), digest.FromString("b")
	got, err := parseChains([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + a + `","` + b + `"]}}`))
	if diff := cmp.Diff(identity.ChainIDs([]digest.Digest{a, b}), got); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestRepositoryOf(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"docker.io/library/a:1":                         "docker.io/library/a",
		"127.0.0.1:5055/a/b":                            "127.0.0.1:5055/a/b",
		"127.0.0.1:5055/a/b:t@sha256:12":                "127.0.0.1:5055/a/b",
		"r.example/a@" + string(digest.FromString("a")): "r.example/a",
		"sha256:12": "sha256",
		"":          "",
	} {
		if got := repositoryOf(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestHostname(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{"a.example": "a.example", "a.example:5000": "a.example", "[::1]:5000": "::1", "[::1]": "::1"} {
		if got := hostname(host); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}
