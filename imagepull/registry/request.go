// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

const maxErrorBody = 8 << 10

// get sends one GET for path, which begins with a slash and may have a query,
// below the repository of the endpoint. It returns any answer below 400; others
// become *Error. The body ends with an *Error when the registry stalls or cuts.
func (c *Client) get(ctx context.Context, a asked, path string, header http.Header) (*http.Response, error) {
	if a.endpoint.cache {
		return c.getCached(ctx, a, path, header)
	}
	state := c.authFor(a.endpoint)
	sent := state.last()
	ctx = context.WithValue(ctx, sentCredential{}, &sent)
	resp, err := c.ask(ctx, a, path, header)
	if (errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err)) && c.renew(ctx, a.endpoint, state, sent) {
		return c.ask(ctx, a, path, header)
	}
	return resp, err
}

// ask is get with the credentials as they are. An endpoint that is insecure by
// the registries configuration is asked over HTTPS first, whatever its
// certificate, then over HTTP; the answer is remembered.
func (c *Client) ask(ctx context.Context, a asked, path string, header http.Header) (*http.Response, error) {
	host := a.endpoint.host()
	schemes := []string{"https"}
	if c.insecure[a.endpoint.registry] {
		schemes[0] = "http"
	} else if a.endpoint.insecure {
		c.mu.Lock()
		if schemes[0] = c.schemes[host]; schemes[0] == "" {
			schemes = []string{"https", "http"}
		}
		c.mu.Unlock()
		ctx = context.WithValue(ctx, unverified{}, host)
	}
	for {
		resp, err := c.send(ctx, a, schemes[0]+"://"+host+"/v2/"+a.endpoint.repository+path, header)
		answered := err == nil
		if e, ok := err.(*Error); ok { //nolint:errorlint // send returns it bare
			answered = e.Status != 0
		}
		if a.endpoint.insecure && answered {
			c.mu.Lock()
			c.schemes[host] = schemes[0]
			c.mu.Unlock()
		}
		if schemes = schemes[1:]; answered || len(schemes) == 0 || ctx.Err() != nil {
			return resp, err
		}
	}
}

// send sends one GET.
func (c *Client) send(ctx context.Context, a asked, address string, header http.Header) (*http.Response, error) {
	// The last Retry-After of the registry or its token server, whose answer the
	// auth client does not pass on.
	trace := &answerTrace{}
	trace.blob, _ = ctx.Value(blobRequest{}).(bool)
	ctx = context.WithValue(ctx, traceKey{}, trace)
	ctx = auth.AppendRepositoryScope(ctx, oras.Reference{Registry: a.endpoint.registry, Repository: a.endpoint.repository}, auth.ActionPull)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, a.fail(errdefs.ErrInvalidArgument, "%v", err)
	}
	if ns := a.endpoint.namespace; ns != "" {
		query := req.URL.Query()
		query.Set("ns", ns)
		req.URL.RawQuery = query.Encode()
	}
	trace.address = req.URL.String()
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.authFor(a.endpoint).client.Do(req)
	if err != nil {
		return nil, a.broken(ctx, err, trace.retryAfter())
	}
	body := &answerBody{ReadCloser: resp.Body, ctx: ctx, asked: a}
	if resp.StatusCode >= http.StatusBadRequest {
		defer func() { _ = body.Close() }()
		return nil, a.refused(resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), time.Now()), errorBody(body))
	}
	resp.Body = body
	return resp, nil
}

// authState is the token-keeping client of one endpoint. Each has its own, so
// that a login for one path is never sent for another.
type authState struct {
	client *auth.Client

	mu   sync.Mutex
	used login.Credential // the last that was sent; guarded by mu
}

func (s *authState) last() login.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// sentCredential is the context key of a *login.Credential: what a request was
// sent with, or the token it was sent with was bought with. Others may have sent
// newer ones since. Only the goroutine of the request touches it.
type sentCredential struct{}

func (c *Client) authFor(e endpoint) *authState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.auths[e]
	if ok {
		return s
	}
	if len(c.auths) >= maxRemembered {
		clear(c.auths)
	}
	s = &authState{client: &auth.Client{
		Client:   c.http,
		Header:   c.header,
		Cache:    auth.NewCache(),
		ClientID: "coffer",
	}}
	// Only the host that serves the endpoint gets its login.
	s.client.Credential = func(ctx context.Context, host string) (auth.Credential, error) {
		if host != e.host() || c.creds == nil {
			return auth.EmptyCredential, nil
		}
		cred, err := c.creds.Credential(ctx, e.registry, e.repository)
		if err != nil {
			return auth.EmptyCredential, &credentialError{err}
		}
		s.mu.Lock()
		s.used = cred
		s.mu.Unlock()
		if sent, ok := ctx.Value(sentCredential{}).(*login.Credential); ok {
			*sent = cred
		}
		return auth.Credential{
			Username: cred.Username, Password: cred.Password,
			RefreshToken: cred.IdentityToken, AccessToken: cred.RegistryToken,
		}, nil
	}
	c.auths[e] = s
	return s
}

// renew reports whether there are other credentials now than those that were
// refused, in a request that began with s. Of several requests that were refused
// together the first renews, the others find it done.
func (c *Client) renew(ctx context.Context, e endpoint, s *authState, refused login.Credential) bool {
	if c.creds == nil {
		return false
	}
	if r, ok := c.creds.(login.Refresher); ok {
		if err := r.Refresh(ctx); err != nil {
			return false // the refusal says more
		}
	}
	now, err := c.creds.Credential(ctx, e.registry, e.repository)
	if err != nil {
		return false
	}
	if refused == now {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.auths[e] == s {
		delete(c.auths, e) // with the tokens that the old ones bought
	}
	return true
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

// answerBody makes the errors of a body say what was asked.
type answerBody struct {
	io.ReadCloser
	ctx   context.Context //nolint:containedctx // the request's own, to tell why it ended
	asked asked
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, b.asked.broken(b.ctx, err, 0)
}

// traceKey is the context key of an *answerTrace.
type traceKey struct{}

// answerTrace is what the transport saw of a request.
type answerTrace struct {
	address string // what is asked for
	blob    bool   // which takes as long as it takes

	mu     sync.Mutex
	header string // guarded by mu
}

// blobRequest is the context key of a true for requests of Fetch.
type blobRequest struct{}

// isOfBlob tells a request for the blob, redirected or not, from those to the
// token server.
func (t *answerTrace) isOfBlob(req *http.Request) bool {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return t.blob && req.URL.String() == t.address
}

func (t *answerTrace) retryAfter() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return retryAfter(t.header, time.Now())
}
