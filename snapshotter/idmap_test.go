// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestMappedRoot(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		uids, gids string
		uid, gid   int
		ok         bool
	}{
		{"0:1000:65536", "0:2000:65536", 1000, 2000, true},
		{"1:5:10,0:7:1", "", 7, 0, true},
		{"0:1000:0", "", 0, 0, false},
		{"1:1000:5", "", 0, 0, false},
		{"0:1000", "", 0, 0, false},
		{"0:-1:5", "", 0, 0, false},
		{"0:4294967296:5", "", 0, 0, false},
	} {
		uid, gid, err := mappedRoot(tc.uids, tc.gids)
		if (err == nil) != tc.ok || tc.ok && (uid != tc.uid || gid != tc.gid) {
			t.Errorf("%q %q: got %d, %d, %v", tc.uids, tc.gids, uid, gid, err)
		}
	}
}

func TestLayerName(t *testing.T) {
	t.Parallel()
	chain, below := digest.FromString("a"), digest.FromString("b")
	if got := layerName(chain, ""); got != chain.String() {
		t.Errorf("got %s", got)
	}
	if got := layerName(chain, below.String()); got != chain.String() {
		t.Errorf("got %s", got)
	}
	mixed := layerName(chain, "ns/1/"+below.String())
	if mixed == chain.String() {
		t.Error("a layer on a local parent has the name of the shared one")
	}
	for name, want := range map[string]bool{chain.String(): true, mixed: true, "ns/1/" + chain.String(): false, "": false, "sha256:12": false} {
		if got, ok := layerChain(name); ok != want || ok && got != chain {
			t.Errorf("%s: got %s, %v", name, got, ok)
		}
	}
}
