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

// maxDocument is the largest manifest, index or config that is read.
const maxDocument = 4 << 20

// request is for one small object.
type request struct {
	what string // for errors
	path string // below the repository
	// digest and size are compared with what comes, if known: not "" and >= 0.
	digest digest.Digest
	size   int64
	limit  int64 // 0 means maxDocument
}

// manifest reads one manifest or index: by d, else by r's tag. size may be -1.
func (c *Client) manifest(ctx context.Context, r Reference, list []endpoint, d digest.Digest, size int64) (doc document, index bool, found digest.Digest, from endpoint, err error) {
	req := request{what: r.Repository + ":" + r.Tag, path: "/manifests/" + r.Tag, digest: d, size: size}
	if d != "" {
		req.what, req.path = r.Repository+"@"+d.String(), "/manifests/"+d.String()
	}
	body, contentType, from, err := c.document(ctx, r, list, req)
	if err != nil {
		return document{}, false, "", from, err
	}
	doc, index, err = parseDocument(body, contentType)
	return doc, index, digest.FromBytes(body), from, err
}

// document reads a small object whole, from the first endpoint that has it as
// it must be.
func (c *Client) document(ctx context.Context, r Reference, list []endpoint, req request) (body []byte, contentType string, from endpoint, err error) {
	if req.limit == 0 {
		req.limit = maxDocument
	}
	if req.size > req.limit {
		a := newAsked(r, list[0], req.what)
		a.via = ""
		return nil, "", from, a.tooLarge(req.limit)
	}
	err = c.each(ctx, r, req.what, list, func(e endpoint, a asked) (err error) {
		from = e
		body, contentType, err = c.read(ctx, a, req)
		return err
	})
	return body, contentType, from, err
}

func (a asked) tooLarge(limit int64) *Error {
	size := fmt.Sprintf("%d bytes", limit)
	if limit%(1<<20) == 0 {
		size = fmt.Sprintf("%d MiB", limit>>20)
	}
	return a.fail(errdefs.ErrInvalidArgument, "larger than %s", size).advise("not an image manifest, config or signature")
}

func (c *Client) read(ctx context.Context, a asked, req request) ([]byte, string, error) {
	header := http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerManifestList, "*/*;q=0.1",
	}, ", ")}}
	resp, err := c.get(ctx, a, req.path, header)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := a.readAll(resp, req.limit)
	switch {
	case err != nil:
		return nil, "", err
	case req.size >= 0 && int64(len(body)) != req.size:
		return nil, "", a.fail(errdefs.ErrDataLoss, "%d bytes came, the manifest says %d", len(body), req.size).advise("push the image again")
	case req.digest != "" && digest.FromBytes(body) != req.digest:
		return nil, "", a.fail(errdefs.ErrDataLoss, "the registry sent other bytes than this digest names").
			advise("push the image again, and do not trust this registry")
	}
	return body, resp.Header.Get("Content-Type"), nil
}

// readAll reads the body of an answer of at most limit bytes.
func (a asked) readAll(resp *http.Response, limit int64) ([]byte, error) {
	if resp.StatusCode != http.StatusOK {
		return nil, a.fail(errdefs.ErrUnknown, "unexpected answer %s", statusText(resp.StatusCode)).advise("is this an OCI registry?")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = a.tooLarge(limit)
	}
	return body, err
}
