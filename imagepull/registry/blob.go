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
func (c *Client) Fetch(ctx context.Context, ref string, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if err := checkDigest(desc.Digest); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	a := asked{registry: r.Registry, what: "blob " + desc.Digest.String() + " of " + r.Repository}
	header := http.Header{}
	if offset > 0 {
		// Both ends, as some registries ask for.
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	resp, err := c.get(ctx, r, a, c.url(r, "blobs", desc.Digest.String()), header)
	if err != nil {
		if e, ok := err.(*Error); ok && e.Status == http.StatusRequestedRangeNotSatisfiable { //nolint:errorlint // get returns it bare
			return nil, a.fail(errdefs.ErrDataLoss, "the registry has fewer than the %d bytes of the manifest: push the image again", desc.Size)
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
		return a.fail(errdefs.ErrUnknown, "unexpected answer %s: is this an OCI registry?", statusText(resp.StatusCode))
	}
}

func checkSize(resp *http.Response, a asked, size, offset int64) error {
	if n := resp.ContentLength; n >= 0 && n+offset != size {
		return a.fail(errdefs.ErrDataLoss, "the registry's blob has %d bytes, the manifest says %d: push the image again", n+offset, size)
	}
	return nil
}
