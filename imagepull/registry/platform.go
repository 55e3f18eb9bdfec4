// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads os/architecture[/variant], as in linux/arm64/v8. Names
// that uname uses are understood. Errors are InvalidArgument.
func ParsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	bad := len(parts) < 2 || len(parts) > 3
	for _, part := range parts {
		bad = bad || part == "" || strings.ContainsFunc(part, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.'
		})
	}
	if bad {
		return ocispec.Platform{}, fmt.Errorf("platform %q is not os/architecture[/variant]: %w", clip(s, 100), errdefs.ErrInvalidArgument)
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// best is a score no offer exceeds.
const best = 1000

// match scores an offer: 0 no, best the wanted variant itself. A machine of a
// variant also runs what is made for the lower ones.
func match(offer, want ocispec.Platform) int {
	if offer.OS != want.OS || offer.Architecture != want.Architecture {
		return 0
	}
	if offer.Variant == want.Variant {
		return best
	}
	has, ok := level(offer)
	needs, ok2 := level(want)
	switch {
	case !ok || !ok2 || has > needs:
		return 0
	case has == needs:
		return best - 1
	}
	return best - 1 - (needs - has)
}

// level is the number of a variant; without one it is what the architecture
// means by that.
func level(p ocispec.Platform) (int, bool) {
	v := p.Variant
	if v == "" {
		switch p.Architecture {
		case "arm64":
			v = "v8"
		case "amd64":
			v = "v1"
		case "arm":
			v = "v7"
		default:
			return 0, false
		}
	}
	digits, ok := strings.CutPrefix(v, "v")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 0 && n < 100
}

// unknown is how builders mark what is no image, as attestations.
const unknown = "unknown"

func platformName(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
