// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch opens the blob desc of the image ref, from byte offset on. The caller
// closes it and checks what it reads: neither digest nor end are checked here,
// except that a registry which announces another size is refused at once
// (DataLoss). A registry that ignores ranges is read from the start and the
// bytes before offset are dropped. All other errors are *Error or of ctx.
//
// Where the repository has several endpoints they are asked in order, those
// last that have failed a moment ago: who fetches again after a failure in the
// middle goes on at another one. See Reject for bytes that turn out wrong. A
// failure of the node's cache, also in the middle, is no error: the rest comes
// from the others.
func (c *Client) Fetch(ctx context.Context, ref string, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if err := checkDigest(desc.Digest); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	list, err := c.endpoints(r, forContent)
	if err != nil {
		return nil, err
	}
	return c.fetch(ctx, r, desc, c.withCache(list), offset)
}

// fetch opens a blob at the first of list that has it.
func (c *Client) fetch(ctx context.Context, r Reference, desc ocispec.Descriptor, list []endpoint, offset int64) (io.ReadCloser, error) {
	several := len(list) > 1 || c.cache != nil
	key := blobKey{r.Name(), desc.Digest}
	var body io.ReadCloser
	err := c.each(ctx, r, "blob "+desc.Digest.String()+" of "+r.Repository, c.trusted(key, list), func(e endpoint, a asked) error {
		opened, err := c.openBlob(ctx, a, desc, offset)
		if err != nil {
			return err
		}
		body = opened
		if several {
			c.sent(key, e, offset)
			body = &mirroredBody{ReadCloser: opened, client: c, asked: a, left: desc.Size - offset}
		}
		if e.cache {
			body = &cachedBody{ReadCloser: body, ctx: ctx, offset: offset, size: desc.Size, elsewhere: func(offset int64) (io.ReadCloser, error) {
				return c.fetch(ctx, r, desc, withoutCache(list), offset)
			}}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

func (c *Client) openBlob(ctx context.Context, a asked, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	header := http.Header{}
	if offset > 0 {
		// Both ends, as some registries ask for.
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	ctx = context.WithValue(ctx, blobRequest{}, true)
	resp, err := c.get(ctx, a, "/blobs/"+desc.Digest.String(), header)
	if err != nil {
		if e, ok := err.(*Error); ok && e.Status == http.StatusRequestedRangeNotSatisfiable { //nolint:errorlint // get returns it bare
			return nil, a.fail(errdefs.ErrDataLoss, "the registry has fewer than the %d bytes of the manifest", desc.Size).advise("push the image again")
		}
		return nil, err
	}
	if err := checkBlob(resp, a, desc.Size, offset); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// checkBlob compares the announced size and positions the body at offset.
func checkBlob(resp *http.Response, a asked, size, offset int64) error {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var start int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != offset {
			return a.fail(errdefs.ErrDataLoss, "asked from byte %d on, answered with %q", offset, clip(resp.Header.Get("Content-Range"), 60))
		}
		return checkSize(resp, a, size, offset)
	case http.StatusOK:
		if err := checkSize(resp, a, size, 0); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, resp.Body, offset)
		if err == io.EOF { //nolint:errorlint // CopyN's own
			return a.fail(errdefs.ErrDataLoss, "blob ends before byte %d of %d", offset, size)
		}
		return err
	default:
		return a.fail(errdefs.ErrUnknown, "unexpected answer %s", statusText(resp.StatusCode)).advise("is this an OCI registry?")
	}
}

func checkSize(resp *http.Response, a asked, size, offset int64) error {
	if n := resp.ContentLength; n >= 0 && n+offset != size {
		return a.fail(errdefs.ErrDataLoss, "the registry's blob has %d bytes, the manifest says %d", n+offset, size).advise("push the image again")
	}
	return nil
}

// mirroredBody is the body of a blob that others have too: one that fails or
// ends too early lets its endpoint rest.
type mirroredBody struct {
	io.ReadCloser
	client *Client
	asked  asked
	left   int64
}

func (b *mirroredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	switch err {
	case nil:
	case io.EOF:
		if b.left > 0 {
			short := b.asked.fail(errdefs.ErrUnavailable, "the blob ends too early")
			short.Temporary = true
			b.client.note(b.asked.endpoint, short)
		}
	default:
		b.client.note(b.asked.endpoint, err)
	}
	return n, err
}
