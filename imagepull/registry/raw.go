// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxReferrerPages = 16
	maxReferrers     = 4096
)

// repository is what the reads of one repository need.
func (c *Client) repository(ref string, p purpose) (Reference, []endpoint, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return r, nil, err
	}
	list, err := c.endpoints(r, p)
	return r, list, err
}

// Manifest reads a manifest or index, of whatever kind, from the repository of
// ref. The body has the digest d; the media type is the registry's word.
func (c *Client) Manifest(ctx context.Context, ref string, d digest.Digest) (body []byte, mediaType string, err error) {
	if err := checkDigest(d); err != nil {
		return nil, "", fmt.Errorf("manifest %w: %w", err, errdefs.ErrInvalidArgument)
	}
	r, list, err := c.repository(ref, forContent)
	if err != nil {
		return nil, "", err
	}
	body, mediaType, _, err = c.document(ctx, r, list, request{
		what: "manifest " + d.String() + " of " + r.Repository, path: "/manifests/" + d.String(), digest: d, size: -1,
	})
	return body, mediaType, err
}

// Tag reads what a tag of the repository of ref points to, and its digest.
// NotFound says that there is no such tag.
func (c *Client) Tag(ctx context.Context, ref, tag string) (body []byte, mediaType string, d digest.Digest, err error) {
	r, list, err := c.repository(ref, forSignature)
	if err != nil {
		return nil, "", "", err
	}
	r.Tag, r.Digest = tag, ""
	if err := r.check(); err != nil || tag == "" {
		return nil, "", "", fmt.Errorf("tag %q of %s: not a tag: %w", clip(tag, 200), r.Name(), errdefs.ErrInvalidArgument)
	}
	body, mediaType, _, err = c.document(ctx, r, list, request{
		what: r.Repository + ":" + tag, path: "/manifests/" + tag, size: -1,
	})
	if err != nil {
		return nil, "", "", err
	}
	return body, mediaType, digest.FromBytes(body), nil
}

// Blob reads a blob of the repository of ref whole. It has the digest and size
// of desc and at most limit bytes (InvalidArgument otherwise).
func (c *Client) Blob(ctx context.Context, ref string, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, err
	}
	r, list, err := c.repository(ref, forContent)
	if err != nil {
		return nil, err
	}
	body, _, _, err := c.document(ctx, r, c.withCache(list), request{
		what: "blob " + desc.Digest.String() + " of " + r.Repository, path: "/blobs/" + desc.Digest.String(),
		digest: desc.Digest, size: desc.Size, limit: max(limit, 1),
	})
	return body, err
}

// Referrers lists the manifests that say they refer to subject, a manifest of
// the repository of ref: those of one artifact type, or all if it is empty. The
// list is the registry's word, and so is its completeness. A registry without
// the referrers API is asked for the tag that stands for it. Where there are
// several endpoints, the first that has any counts. None is no error.
func (c *Client) Referrers(ctx context.Context, ref string, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := checkDigest(subject); err != nil {
		return nil, fmt.Errorf("referrers: subject %w: %w", err, errdefs.ErrInvalidArgument)
	}
	r, list, err := c.repository(ref, forContent)
	if err != nil {
		return nil, err
	}
	var found []ocispec.Descriptor
	what := "referrers of " + subject.String() + " in " + r.Repository
	err = c.each(ctx, r, what, list, func(_ endpoint, a asked) error {
		all, err := c.referrers(ctx, a, subject, artifactType)
		if err != nil {
			return err
		}
		for _, d := range all {
			if (artifactType == "" || d.ArtifactType == artifactType) && checkDescriptor(d) == nil {
				found = append(found, d)
			}
		}
		if len(found) == 0 {
			return a.fail(errdefs.ErrNotFound, "none")
		}
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return found, err
}

// referrers asks one endpoint, page by page.
func (c *Client) referrers(ctx context.Context, a asked, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	base := "/referrers/" + subject.String()
	path := base
	if artifactType != "" {
		path += "?" + url.Values{"artifactType": {artifactType}}.Encode()
	}
	var all []ocispec.Descriptor
	for page := 0; path != ""; page++ {
		if page == maxReferrerPages {
			return nil, a.tooManyReferrers()
		}
		index, next, err := c.referrersPage(ctx, a, path, base)
		if e, ok := err.(*Error); ok && page == 0 && withoutAPI(e.Status) { //nolint:errorlint // referrersPage returns it bare
			return c.referrersTag(ctx, a, subject)
		}
		if err != nil {
			return nil, err
		}
		if all = append(all, index.Manifests...); len(all) > maxReferrers {
			return nil, a.tooManyReferrers()
		}
		path = next
	}
	return all, nil
}

func (a asked) tooManyReferrers() *Error {
	return a.fail(errdefs.ErrInvalidArgument, "more than %d pages or %d entries", maxReferrerPages, maxReferrers).
		advise("remove referrers that are no longer needed")
}

func (c *Client) referrersPage(ctx context.Context, a asked, path, base string) (index document, next string, err error) {
	resp, err := c.get(ctx, a, path, http.Header{"Accept": {ocispec.MediaTypeImageIndex}})
	if err != nil {
		return index, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := a.readAll(resp, maxDocument)
	if err != nil {
		return index, "", err
	}
	if index, err = a.parseReferrers(body); err != nil {
		return index, "", err
	}
	next, err = a.nextPage(resp.Header.Get("Link"), base)
	return index, next, err
}

// withoutAPI tells the answers of registries that do not know the API.
func withoutAPI(status int) bool {
	switch status {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}

func (c *Client) referrersTag(ctx context.Context, a asked, subject digest.Digest) ([]ocispec.Descriptor, error) {
	body, _, err := c.read(ctx, a, request{
		path: "/manifests/" + subject.Algorithm().String() + "-" + subject.Encoded(), size: -1, limit: maxDocument,
	})
	if err != nil {
		return nil, err
	}
	index, err := a.parseReferrers(body)
	return index.Manifests, err
}

func (a asked) parseReferrers(body []byte) (document, error) {
	var index document
	err := json.Unmarshal(body, &index)
	if errors.Is(err, errTooMany) || len(index.Manifests) > maxReferrers {
		return index, a.tooManyReferrers()
	}
	if err != nil || index.MediaType != "" && index.MediaType != ocispec.MediaTypeImageIndex {
		return index, a.fail(errdefs.ErrInvalidArgument, "the list is not an OCI index").advise("is this an OCI registry?")
	}
	return index, nil
}

// nextPage reads a Link header: the path of the next page, which must be of the
// same list; "" if this was the last.
func (a asked) nextPage(link, base string) (string, error) {
	target, parameters, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(strings.ReplaceAll(parameters, `"`, ""), "rel=next") {
		return "", nil
	}
	u, err := url.Parse(target)
	if err != nil || u.Host != "" && u.Host != a.endpoint.host() || !strings.HasSuffix(u.Path, base) && u.Path != "" {
		return "", a.fail(errdefs.ErrInvalidArgument, "the next page of the list is elsewhere").advise("is this an OCI registry?")
	}
	if u.RawQuery == "" {
		return "", nil
	}
	return base + "?" + u.RawQuery, nil
}
