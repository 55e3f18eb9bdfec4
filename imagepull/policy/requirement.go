// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// requirement is one thing that must hold for an image.
type requirement interface {
	// kind is its "type".
	kind() string
	// check returns nil if it holds, else a *refusal or an error with a class.
	check(ctx context.Context, e *evaluation) error
	// materials are the keys and certificates that check may load.
	materials() []material
}

// acceptAnything always holds.
type acceptAnything struct{}

func (acceptAnything) kind() string                             { return "insecureAcceptAnything" }
func (acceptAnything) check(context.Context, *evaluation) error { return nil }
func (acceptAnything) materials() []material                    { return nil }

// reject never holds.
type reject struct{}

func (reject) kind() string          { return "reject" }
func (reject) materials() []material { return nil }

func (reject) check(_ context.Context, e *evaluation) error {
	return refused("pull an image that the policy allows, or let the key owner add a scope for it", "%s may not be pulled", e.image.name)
}

// digests holds for the images it lists, by manifest or index: the key owner
// pins what may run, whoever signed it and whatever the host asks for.
type digests struct{ allowed []digest.Digest }

func (*digests) kind() string          { return "digests" }
func (*digests) materials() []material { return nil }

func parseDigests(f *fields) *digests {
	d := &digests{}
	list := f.texts("digests")
	if list == nil {
		f.fail("digests", "missing")
	}
	for i, s := range list {
		v := digest.Digest(s)
		if err := v.Validate(); err != nil || v.Algorithm() != digest.SHA256 {
			f.fail("digests", "element %d: %q is not sha256: and 64 hexadecimal digits", i, clip(s, 100))
		}
		d.allowed = append(d.allowed, v)
	}
	return d
}

func (d *digests) check(_ context.Context, e *evaluation) error {
	for _, v := range e.image.digests {
		if slices.Contains(d.allowed, v) {
			return nil
		}
	}
	return refused("let the key owner add it if it is the intended image", "%s is not in the list", fmt.Sprint(e.image.digests))
}
