// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Resolve reads manifest and config of the image ref for this platform. Of tag
// and digest in ref the digest decides; it may name an index or the platform's
// manifest. Without any digest the tag is asked, once.
//
// A manifest digest, if there is one, is what the caller wants: an index or the
// platform's manifest, whatever the tag says now. Where ref has a digest too,
// that must be the same, or an index that leads to it (else PermissionDenied).
//
// A ref without registry is what the registries configuration makes of it. Of
// several registries the first that has it counts; one that cannot be asked is
// an error, lest who can cut a connection choose the next one.
//
// Errors: *Error for the registry's, else InvalidArgument (malformed, or of
// another platform), NotImplemented (not an image this can read), DataLoss (not
// the bytes the digest names), PermissionDenied (blocked).
func (c *Client) Resolve(ctx context.Context, ref string, manifest digest.Digest) (Image, error) {
	r, short, err := parseNamed(ref)
	if err != nil {
		return Image{}, err
	}
	if manifest != "" {
		if err := checkDigest(manifest); err != nil {
			return Image{}, fmt.Errorf("image %s: manifest %w: %w", r, err, errdefs.ErrInvalidArgument)
		}
	}
	if err := c.config.reload(ctx); err != nil {
		return Image{}, errConfiguration(ctx, r, err)
	}
	if short == "" {
		return c.resolveNamed(ctx, r, manifest)
	}
	config, err := c.config.now()
	if err != nil {
		return Image{}, err
	}
	names, err := config.Names(short)
	if err != nil {
		return Image{}, fmt.Errorf("image %w", err)
	}
	return c.search(ctx, r, names, manifest)
}

// search resolves a name without registry.
func (c *Client) search(ctx context.Context, r Reference, names []string, manifest digest.Digest) (Image, error) {
	var failed []error
	for _, name := range names {
		r.Registry, r.Repository, _ = strings.Cut(name, "/")
		if err := r.check(); err != nil {
			return Image{}, fmt.Errorf("image %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
		image, err := c.resolveNamed(ctx, r, manifest)
		if err == nil {
			return image, nil
		}
		failed = append(failed, err)
		// A mirror's refusal says nothing of the registry that was out of reach.
		if e, ok := err.(*Error); ok && e.Temporary { //nolint:errorlint // resolveNamed returns it bare
			return Image{}, err
		}
		if !errdefs.IsNotFound(err) && !errdefs.IsUnauthorized(err) && !errdefs.IsPermissionDenied(err) {
			return Image{}, err
		}
	}
	if len(failed) == 1 {
		return Image{}, failed[0]
	}
	texts := make([]string, len(failed))
	for i, err := range failed {
		texts[i] = err.Error()
	}
	return Image{}, fmt.Errorf("in none of the registries that are searched: %s: %w", strings.Join(texts, "; "), errdefs.ErrNotFound)
}

func (c *Client) resolveNamed(ctx context.Context, r Reference, manifest digest.Digest) (Image, error) {
	image, err := c.resolve(ctx, r, manifest)
	if err != nil {
		if _, ok := err.(*Error); ok { //nolint:errorlint // it names registry and image itself
			return Image{}, err
		}
		return Image{}, fmt.Errorf("image %s: %w", r, err)
	}
	image.Name = r.String()
	return image, nil
}

func (c *Client) resolve(ctx context.Context, r Reference, manifest digest.Digest) (Image, error) {
	w := walk{client: c, ref: r, seen: make(map[digest.Digest]bool)}
	start := r
	if manifest != "" && r.Digest == "" {
		start = r.WithDigest(manifest)
	} else if manifest != r.Digest {
		w.want = manifest
	}
	doc, found, err := w.start(ctx, start)
	if err != nil {
		return Image{}, err
	}
	if err := checkManifest(doc); err != nil {
		return Image{}, err
	}
	body, _, _, err := c.document(ctx, r, c.withCache(w.endpoints), request{
		what: "config " + doc.Config.Digest.String() + " of " + r.Repository,
		path: "/blobs/" + doc.Config.Digest.String(), digest: doc.Config.Digest, size: doc.Config.Size,
	})
	if err != nil {
		return Image{}, err
	}
	config, layers, err := parseConfig(body, doc.Layers, c.platform)
	if err != nil {
		return Image{}, err
	}
	if w.top == "" && manifest != "" && r.Tag != "" && c.findIndex {
		if w.top, err = w.indexOf(ctx, found); err != nil {
			return Image{}, err
		}
	}
	return Image{Reference: r.WithDigest(found).String(), Manifest: found, Index: w.top, Config: config, Layers: layers}, nil
}

const (
	maxDepth     = 4
	maxDocuments = 32
)

// walk goes from what a reference names to the manifest of one image.
type walk struct {
	client *Client
	ref    Reference
	// want is the manifest to find, empty to choose by platform.
	want digest.Digest

	// endpoints begin with the one that knew the start.
	endpoints []endpoint
	top       digest.Digest // the index at the start, if it is one
	seen      map[digest.Digest]bool
	offered   []string // platforms, for the error
}

// start reads what r names, by digest or else by tag, and goes on from there.
func (w *walk) start(ctx context.Context, r Reference) (document, digest.Digest, error) {
	purpose := forTag
	if r.Digest != "" {
		purpose = forDigest
	}
	list, err := w.client.endpoints(r, purpose)
	if err != nil {
		return document{}, "", err
	}
	doc, index, found, e, err := w.client.manifest(ctx, r, list, r.Digest, -1)
	if err != nil {
		return doc, "", err
	}
	rest, err := w.client.endpoints(r, forContent)
	if err != nil {
		return doc, "", err
	}
	w.endpoints = first(e, rest)
	if !index {
		if w.want != "" && w.want != found {
			return doc, "", w.errForeign()
		}
		return doc, found, nil
	}
	w.top, w.seen[found] = found, true
	if w.want == found {
		w.want = ""
	}
	doc, found, err = w.descend(ctx, doc, 1)
	if err == nil && found == "" {
		err = w.errNothing()
	}
	return doc, found, err
}

// descend finds the image in an index and those below it; a digest of "" says
// that it is not there.
func (w *walk) descend(ctx context.Context, index document, depth int) (document, digest.Digest, error) {
	for _, desc := range w.offers(index.Manifests) {
		if err := checkDescriptor(desc); err != nil {
			return document{}, "", err
		}
		if w.seen[desc.Digest] {
			return document{}, "", fmt.Errorf("index %s is in itself, or twice in another: %w", desc.Digest, errdefs.ErrInvalidArgument)
		}
		if len(w.seen) >= maxDocuments {
			return document{}, "", fmt.Errorf("more than %d indexes below one another: %w", maxDocuments, errdefs.ErrInvalidArgument)
		}
		w.seen[desc.Digest] = true
		doc, isIndex, found, _, err := w.client.manifest(ctx, w.ref, w.endpoints, desc.Digest, desc.Size)
		if err != nil {
			return doc, "", err
		}
		if !isIndex {
			return doc, found, nil
		}
		wanted := w.want == found
		if wanted {
			w.want = ""
		}
		if depth == maxDepth {
			return doc, "", fmt.Errorf("indexes nested more than %d deep: %w", maxDepth, errdefs.ErrInvalidArgument)
		}
		doc, found, err = w.descend(ctx, doc, depth+1)
		if wanted && err == nil && found == "" {
			err = w.errNothing() // what is beside the wanted one is not wanted
		}
		if err != nil || found != "" {
			return doc, found, err
		}
	}
	return document{}, "", nil
}

// offers are the entries of an index that are worth reading: the wanted one, or
// the best for the platform, else the indexes that do not say what for.
func (w *walk) offers(manifests []ocispec.Descriptor) []ocispec.Descriptor {
	if i := slices.IndexFunc(manifests, func(m ocispec.Descriptor) bool { return m.Digest == w.want }); i >= 0 && w.want != "" {
		return manifests[i : i+1]
	}
	if len(manifests) == 1 && manifests[0].Platform == nil && w.want == "" { // the config says later what it is for
		return manifests
	}
	var nested []ocispec.Descriptor
	chosen, score := -1, 0
	for i, m := range manifests {
		isIndex := m.MediaType == ocispec.MediaTypeImageIndex || m.MediaType == dockerManifestList
		switch {
		case m.Platform == nil || w.want != "":
			if isIndex {
				nested = append(nested, m)
			}
			continue
		case m.Platform.OS == unknown && m.Platform.Architecture == unknown:
			continue // an attestation
		}
		w.offer(platformName(*m.Platform))
		if s := match(*m.Platform, w.client.platform); s > score {
			chosen, score = i, s
		}
	}
	if chosen >= 0 {
		return manifests[chosen : chosen+1]
	}
	return nested
}

func (w *walk) offer(platform string) {
	if len(w.offered) < 32 && !slices.Contains(w.offered, platform) {
		w.offered = append(w.offered, platform)
	}
}

func (w *walk) errNothing() error {
	switch {
	case w.want != "":
		return w.errForeign()
	case len(w.offered) == 0:
		return fmt.Errorf("the index has no image, only other artifacts: %w", errdefs.ErrNotFound)
	}
	return fmt.Errorf("no image for %s, only for %s: push one for this platform: %w",
		platformName(w.client.platform), clip(strings.Join(w.offered, ", "), 200), errdefs.ErrNotFound)
}

func (w *walk) errForeign() error {
	return fmt.Errorf("manifest %s is not what the digest of this name leads to: name the image by the digest that is wanted: %w", w.want, errdefs.ErrPermissionDenied)
}

// indexOf is the index that the tag points to now, if it has the manifest.
func (w *walk) indexOf(ctx context.Context, manifest digest.Digest) (digest.Digest, error) {
	r := w.ref
	r.Digest = ""
	list, err := w.client.endpoints(r, forSignature)
	if err != nil {
		return "", err
	}
	doc, index, found, _, err := w.client.manifest(ctx, r, list, "", -1)
	if e, ok := err.(*Error); ok && e.Temporary { //nolint:errorlint // manifest returns it bare
		return "", err
	}
	if err != nil || !index {
		return "", nil //nolint:nilerr // the tag has gone or is of another image: there is no index to know
	}
	has := func(m ocispec.Descriptor) bool { return m.Digest == manifest }
	if slices.ContainsFunc(doc.Manifests, has) {
		return found, nil
	}
	return "", nil
}
