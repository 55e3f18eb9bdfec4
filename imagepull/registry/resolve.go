// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const maxDocument = 4 << 20

// Resolve reads manifest and config of the image ref for this platform. A
// manifest digest decides over tag and digest in ref; it may name an index or
// the platform's manifest. Without any digest the tag is asked, once.
//
// Errors: *Error for the registry's, else InvalidArgument (malformed, or of
// another platform), NotImplemented (not an image this can read), DataLoss (not
// the bytes the digest names).
func (c *Client) Resolve(ctx context.Context, ref string, manifest digest.Digest) (Image, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	if manifest != "" {
		if err := checkDigest(manifest); err != nil {
			return Image{}, fmt.Errorf("image %s: manifest %w: %w", r, err, errdefs.ErrInvalidArgument)
		}
		r = r.WithDigest(manifest)
	}
	image, err := c.resolve(ctx, r)
	if err != nil {
		if _, ok := err.(*Error); ok { //nolint:errorlint // it names registry and image itself
			return Image{}, err
		}
		return Image{}, fmt.Errorf("image %s: %w", r, err)
	}
	return image, nil
}

func (c *Client) resolve(ctx context.Context, r Reference) (Image, error) {
	doc, index, found, err := c.manifest(ctx, r, ocispec.Descriptor{Digest: r.Digest})
	if err != nil {
		return Image{}, err
	}
	if index {
		desc, err := choose(doc.Manifests, c.platform)
		if err != nil {
			return Image{}, err
		}
		if doc, index, found, err = c.manifest(ctx, r, desc); err != nil {
			return Image{}, err
		}
		if index {
			return Image{}, fmt.Errorf("index in an index: %w", errdefs.ErrNotImplemented)
		}
	}
	if err := checkManifest(doc); err != nil {
		return Image{}, err
	}
	a := asked{registry: r.Registry, what: "config " + doc.Config.Digest.String() + " of " + r.Repository}
	body, _, err := c.document(ctx, r, a, c.url(r, "blobs", doc.Config.Digest.String()), *doc.Config)
	if err != nil {
		return Image{}, err
	}
	config, layers, err := parseConfig(body, doc.Layers, c.platform)
	if err != nil {
		return Image{}, err
	}
	return Image{Reference: r.WithDigest(found).String(), Manifest: found, Config: config, Layers: layers}, nil
}

// manifest reads one manifest or index: by desc's digest, else by r's tag.
func (c *Client) manifest(ctx context.Context, r Reference, desc ocispec.Descriptor) (document, bool, digest.Digest, error) {
	name, what := r.Tag, r.Repository+":"+r.Tag
	if desc.Digest != "" {
		name, what = desc.Digest.String(), r.Repository+"@"+desc.Digest.String()
	}
	a := asked{registry: r.Registry, what: what}
	body, contentType, err := c.document(ctx, r, a, c.url(r, "manifests", name), desc)
	if err != nil {
		return document{}, false, "", err
	}
	doc, index, err := parseDocument(body, contentType)
	return doc, index, digest.FromBytes(body), err
}

// document reads a small object whole and compares it with desc, as far as
// desc is known.
func (c *Client) document(ctx context.Context, r Reference, a asked, url string, desc ocispec.Descriptor) ([]byte, string, error) {
	header := http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerManifestList, "*/*;q=0.1",
	}, ", ")}}
	resp, err := c.get(ctx, r, a, url, header)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, "", err
	}
	switch {
	case len(body) > maxDocument:
		return nil, "", a.fail(errdefs.ErrInvalidArgument, "larger than %d MiB: not an image manifest or config", maxDocument>>20)
	case desc.Size > 0 && int64(len(body)) != desc.Size:
		return nil, "", a.fail(errdefs.ErrDataLoss, "%d bytes came, the manifest says %d: push the image again", len(body), desc.Size)
	case desc.Digest != "" && digest.FromBytes(body) != desc.Digest:
		return nil, "", a.fail(errdefs.ErrDataLoss, "the registry sent other bytes than this digest names: push the image again, and do not trust this registry")
	}
	return body, resp.Header.Get("Content-Type"), nil
}
