// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// maxSignatures are read in one place; nobody signs an image that often.
	maxSignatures = 128
	maxSignature  = 64 << 10
	storeTimeout  = 30 * time.Second
	// storeTries is how often a store is asked that cannot be reached, that says
	// that it is at fault, or that is busy.
	storeTries = 4
)

// stored is a simple signature, not checked.
type stored struct {
	where string
	bytes []byte
}

// storedSignatures reads the signatures of manifest and index from the store
// that is configured for the image, once for all requirements. Why there are
// none, or not all, is the second result; it is to be reported if none of the
// first is good.
func (e *evaluation) storedSignatures(ctx context.Context) ([]stored, *refusal) {
	if !e.storeRead {
		e.storeRead = true
		e.stored, e.storedErr = e.readStore(ctx)
	}
	return e.stored, e.storedErr
}

func (e *evaluation) readStore(ctx context.Context) ([]stored, *refusal) {
	if e.lookaside == nil {
		return nil, refused("set policy.signatures", "no signature store is configured")
	}
	l, err := e.lookaside.Lookaside(ctx)
	if err != nil {
		return nil, &refusal{why: "signature stores are not known: " + err.Error(), next: "see that the configuration of signature stores can be read", class: err}
	}
	base := l.find(e.image.name)
	if base == nil {
		return nil, refused("name one under docker or default-docker in the document that policy.signatures names", "no signature store is configured for %s", e.image.name.repository)
	}
	var out []stored
	for _, d := range e.image.digests {
		for i := 1; ; i++ {
			if i > maxSignatures {
				return out, refused("remove what is not needed from the signature store", "%s has more than %d signatures", base, maxSignatures)
			}
			u := *base
			u.Path += fmt.Sprintf("/%s@%s=%s/signature-%d", e.image.name.path, digest.SHA256, d.Encoded(), i)
			b, err := e.readSignature(ctx, &u)
			if errdefs.IsNotFound(err) {
				break
			}
			if err != nil {
				return out, &refusal{why: fmt.Sprintf("signature store: %s: %v", &u, err), next: "see that the store can be read, then try again", class: err}
			}
			out = append(out, stored{where: fmt.Sprintf("signature-%d of %s", i, d), bytes: b})
		}
	}
	return out, nil
}

// readSignature reads one file of a store. One that is too long is cut, which
// no signature survives.
func (e *evaluation) readSignature(ctx context.Context, u *url.URL) ([]byte, error) {
	if u.Scheme == "file" {
		f, err := os.Open(u.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errdefs.ErrNotFound
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		defer f.Close()
		return readLimited(f)
	}
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval = e.pause
	return backoff.Retry(ctx, func() ([]byte, error) { return e.fetchSignature(ctx, u) },
		backoff.WithBackOff(pace), backoff.WithMaxTries(storeTries), backoff.WithMaxElapsedTime(0))
}

// fetchSignature asks an HTTPS store once. What no second try would change is a
// permanent error to backoff.
func (e *evaluation) fetchSignature(ctx context.Context, u *url.URL) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, backoff.Permanent(fmt.Errorf("not a URL: %w", errdefs.ErrInvalidArgument))
	}
	resp, err := e.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // the URL is named once already
		}
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		if errors.Is(err, errRedirected) {
			err = backoff.Permanent(err)
		}
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return readLimited(resp.Body)
	case http.StatusNotFound:
		return nil, backoff.Permanent(errdefs.ErrNotFound)
	}
	err = fmt.Errorf("the store answered %s: %w", resp.Status, errdefs.ErrUnavailable)
	if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests {
		err = backoff.Permanent(err)
	}
	return nil, err
}

var errRedirected = errors.New("redirected to something other than HTTPS, or too often")

// onlyHTTPS keeps a store from sending the guest to anything else: whoever is
// on the way could then choose the signatures that it gets to see.
func onlyHTTPS(req *http.Request, via []*http.Request) error {
	const most = 10
	if req.URL.Scheme != "https" || len(via) >= most {
		return errRedirected
	}
	return nil
}

func readLimited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSignature+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return b, nil
}
