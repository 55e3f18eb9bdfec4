// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads OS/ARCH or OS/ARCH/VARIANT, as in linux/arm64.
func ParsePlatform(s string) (*ocispec.Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil || !strings.Contains(s, "/") {
		return nil, invalid("platform %q: write OS/ARCH or OS/ARCH/VARIANT, as in linux/amd64", s)
	}
	return &p, nil
}

// formatPlatform returns the text that ParsePlatform reads, or "" for nil.
func formatPlatform(p *ocispec.Platform) string {
	if p == nil {
		return ""
	}
	return platforms.Format(*p)
}

func samePlatform(want, have *ocispec.Platform) bool {
	return have != nil && platforms.OnlyStrict(*want).Match(*have)
}
