// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const maxErrorBody = 8 << 10

// get sends one GET and returns any answer below 400; others become *Error.
// The body ends with an *Error when the registry stalls or cuts.
func (c *Client) get(ctx context.Context, ref Reference, a asked, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ctx = auth.AppendRepositoryScope(ctx, oras.Reference{Registry: ref.Registry, Repository: ref.Repository}, auth.ActionPull)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, a.fail(err, "%v", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.authClient(ref).Do(req)
	if err != nil {
		err = a.broken(ctx, err)
		cancel(nil)
		return nil, err
	}
	body := newStallReader(ctx, cancel, resp.Body, c.stall, a)
	if resp.StatusCode >= http.StatusBadRequest {
		defer func() { _ = body.Close() }()
		return nil, a.refused(resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), time.Now()), errorBody(body))
	}
	resp.Body = body
	return resp, nil
}

// errorBody is the registry's own error text, empty if it gave none.
func errorBody(r io.Reader) string {
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(r, maxErrorBody)).Decode(&body) != nil {
		return ""
	}
	return detailOf(body.Errors)
}

// retryAfter reads the header's two forms, seconds and HTTP date.
func retryAfter(v string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// stallReader ends a body for which no byte came in time. Only the time spent
// inside Read counts, so a slow consumer is no stall.
type stallReader struct {
	ctx    context.Context //nolint:containedctx // the request's own, to tell why it ended
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	after  time.Duration
	timer  *time.Timer
	asked  asked
}

func newStallReader(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, after time.Duration, a asked) *stallReader {
	timer := time.AfterFunc(after, func() { cancel(errStalled) })
	timer.Stop()
	return &stallReader{ctx: ctx, cancel: cancel, body: body, after: after, timer: timer, asked: a}
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.after)
	n, err := s.body.Read(p)
	s.timer.Stop()
	if err == nil || err == io.EOF { //nolint:errorlint // the body's own EOF, by contract bare
		return n, err
	}
	if errors.Is(context.Cause(s.ctx), errStalled) {
		err = fmt.Errorf("%w for %s", errStalled, s.after)
	}
	return n, s.asked.broken(s.ctx, err)
}

// Close lets the connection go; it does not wait for the rest of the body.
func (s *stallReader) Close() error {
	s.timer.Stop()
	s.cancel(nil)
	return s.body.Close()
}
