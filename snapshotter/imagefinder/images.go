// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// use is an image that a container can be made from: a name, and what of its
// target has the layer in question on top.
type use struct {
	name   string
	target digest.Digest
	top
}

// index is what the manifest was chosen from.
func (u use) index() digest.Digest {
	if u.target == u.manifest {
		return ""
	}
	return u.target
}

// ImagesOf calls found for each image, in the containerd namespace of ctx, whose
// topmost layer has the chain id: those that a container on that layer may be
// made from. manifest is that of this machine's platform (there may be several
// that fit), index the target of the name where that is an index. The digests
// have been checked against the bytes. Where found returns an error, that is the
// result. No image at all is no error.
//
// Two kinds of names that containerd's CRI adds of itself are left out, since
// another name stands for them: repository@digest beside a name of the same
// repository with a tag and the same target, and sha256:<config> beside any other
// name with that config. A sha256:<config> without another name is
// PermissionDenied: there is no name to judge.
//
// An image that cannot be read as one, or is not there in whole, is passed over:
// containerd cannot make a container of it either. One that is too large to be
// read is an error, as it may hide something.
func (f *Finder) ImagesOf(ctx context.Context, chainID digest.Digest, found func(name string, manifest, index digest.Digest) error) error {
	uses, err := f.uses(ctx, chainID)
	if err != nil {
		return fmt.Errorf("images on layer %s: %w", chainID, err)
	}
	for _, u := range uses {
		if err := found(u.name, u.manifest, u.index()); err != nil {
			return err
		}
	}
	return nil
}

func (f *Finder) uses(ctx context.Context, chainID digest.Digest) ([]use, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	// The namespace came in with a request; this sends it on.
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, ns), f.timeout)
	defer cancel()
	records, err := f.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images of containerd namespace %s (is containerd_address right?): %w", ns, unavailable(err))
	}
	var all []use
	for i := range records {
		tops, err := f.topsOf(ctx, ns, records[i].Target.Digest)
		if err != nil {
			return nil, fmt.Errorf("image %s of containerd namespace %s: %w", records[i].Name, ns, err)
		}
		all = append(all, usesOf(records[i], tops, chainID)...)
	}
	f.forgetTops(len(records))
	return judged(all)
}

func usesOf(record images.Image, tops []top, chainID digest.Digest) (uses []use) {
	for _, t := range tops {
		if t.chain == chainID {
			uses = append(uses, use{name: record.Name, target: record.Target.Digest, top: t})
		}
	}
	return uses
}

// judged are the uses that a policy is to be asked about, sorted by name.
func judged(all []use) ([]use, error) {
	var asked []use
	for _, u := range all {
		switch {
		case isConfigID(u.name):
			if !slices.ContainsFunc(all, func(o use) bool { return !isConfigID(o.name) && o.config == u.config }) {
				return nil, fmt.Errorf("image %s has no other name that a policy could judge: remove it (crictl rmi, ctr images rm), or pull it by its name: %w", u.name, errdefs.ErrPermissionDenied)
			}
		case slices.ContainsFunc(all, func(o use) bool { return o.standsFor(u) }):
		default:
			asked = append(asked, u)
		}
	}
	slices.SortFunc(asked, func(a, b use) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(string(a.manifest), string(b.manifest)))
	})
	return slices.Compact(asked), nil
}

// isConfigID tells the names that CRI gives an image for its id.
func isConfigID(name string) bool { return digest.Digest(name).Validate() == nil }

// standsFor says whether u is by tag what o is by digest alone.
func (u use) standsFor(o use) bool {
	repository, _, byDigest := strings.Cut(o.name, "@")
	return byDigest && repositoryOf(repository) == repository && // o has no tag
		!strings.Contains(u.name, "@") && !isConfigID(u.name) && repositoryOf(u.name) == repository &&
		u.target == o.target && u.manifest == o.manifest
}

// unavailable gives an error without a class that of a containerd that does not
// answer: what is not known does not allow anything.
func unavailable(err error) error {
	if errdefs.Resolve(err) != errdefs.ErrUnknown { //nolint:errorlint // Resolve returns the sentinel itself
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}
