// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// TestRememberedIsBounded has layers of many unlisted directories, and of few
// with names as long as they may be.
func TestRememberedIsBounded(t *testing.T) {
	t.Parallel()
	names := func(n, length int) []string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf("%s%04d", strings.Repeat("d", length-4), i)
		}
		return all
	}
	p := NewPuller(nil, nil, nil, Options{})
	for i, tc := range []struct {
		implicit []string
		kept     bool
	}{
		{nil, true},
		{names(100, 100), true},
		{names(1000, 30), false},
		{names(5, 4000), false},
	} {
		l := registry.Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromString(fmt.Sprint(i))}}
		p.remember(l, &staged{facts: unpack.Facts{Implicit: tc.implicit}})
		if got := p.known(l); got != tc.kept {
			t.Errorf("%d names: remembered %v, want %v", len(tc.implicit), got, tc.kept)
		}
	}
}
