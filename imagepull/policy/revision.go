// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Revision names what Verify's answer for an image of this name rests on: the
// policy's document, and the keys and certificates that the requirements for this
// name take from elsewhere. Two equal revisions judge equally what is said of an
// image; what changes without it is which signatures can be found, where the
// stores are, and the time at which a key ends.
//
// Documents are read as Verify reads them, and errors are the same. No registry
// and no signature store is asked.
func (v *Verifier) Revision(ctx context.Context, image string) (string, error) {
	p, err := v.policy.Policy(ctx)
	if err != nil {
		return "", err
	}
	if p == nil {
		return "", fmt.Errorf("image policy: there is none: %w", errdefs.ErrFailedPrecondition)
	}
	n, err := parseName(image)
	if err != nil {
		return "", fmt.Errorf("image policy: image %q: %w: %w", clip(image, 200), err, errdefs.ErrInvalidArgument)
	}
	if n.bare() {
		n.tag = "latest"
	}
	scope, requirements := p.find(n)
	all := digest.SHA256.Digester()
	add := func(d digest.Digest) { _, _ = all.Hash().Write([]byte(d)) } // digests of one algorithm have one length
	add(p.document)
	for _, r := range requirements {
		for _, m := range r.materials() {
			if m.uri == "" {
				continue // it is in the document
			}
			b, err := m.load(ctx, v.docs)
			if err != nil {
				return "", decide(ctx, scope, r.kind(), err)
			}
			add(digest.FromBytes(b))
		}
	}
	return all.Digest().String(), nil
}
