// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// cacheConnect is how long a connection to the node's own cache may take.
	cacheConnect = 3 * time.Second
	// cacheStall is how long the cache may send nothing before the registry is
	// asked; less where Options.StallTimeout is less.
	cacheStall = 15 * time.Second
)

// nodeCache is the node's cache of blobs. Nothing that it says is believed, and
// it is sent nothing but the names of blobs: no login, no token, and no request
// that it redirects to.
type nodeCache struct {
	address string // as configured: no registry is called so
	base    string // of its URLs
	router  *router
	client  *http.Client
}

// newNodeCache reads an address; it connects to nothing.
func newNodeCache(address string, stall time.Duration) (*nodeCache, error) {
	base, dial, err := parseCache(address)
	if err != nil {
		return nil, fmt.Errorf("registry cache %q: %w: %w", address, err, errdefs.ErrInvalidArgument)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, min(cacheConnect, stall))
			defer cancel()
			return dial(ctx)
		},
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    idlePerHost,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	r := &router{common: hostTransports{transport, transport}, stall: min(cacheStall, stall)}
	return &nodeCache{address: address, base: base, router: r, client: &http.Client{
		Transport:     r,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// parseCache reads http://host[:port], unix:///path or vsock://CID:PORT. It
// returns the base of URLs and what connects.
func parseCache(s string) (base string, dial func(context.Context) (net.Conn, error), err error) {
	bad := fmt.Errorf("not http://host[:port], unix:///path or vsock://CID:PORT")
	scheme, rest, _ := strings.Cut(s, "://")
	var dialer net.Dialer
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return "", nil, bad
		}
		return "http://cache", func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", rest) }, nil
	case "vsock":
		id, number, _ := strings.Cut(rest, ":")
		// The last of either is what the kernel takes for any.
		cid, cidErr := strconv.ParseUint(id, 10, 32)
		port, portErr := strconv.ParseUint(number, 10, 32)
		if cidErr != nil || portErr != nil || cid == math.MaxUint32 || port == 0 || port == math.MaxUint32 {
			return "", nil, bad
		}
		return "http://cache", func(ctx context.Context) (net.Conn, error) {
			return dialVsock(ctx, uint32(cid), uint32(port))
		}, nil
	case "http":
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || s != "http://"+u.Host {
			return "", nil, bad
		}
		port := u.Port()
		if port == "" {
			port = "80"
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", nil, bad
		}
		at := net.JoinHostPort(u.Hostname(), port)
		return s, func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", at) }, nil
	}
	return "", nil, bad
}

// withCache puts the node's cache, if there is one, before the endpoints of a
// blob; behind them while it rests. What it has to ask itself, for a blob that it
// has not, is the repository's own registry.
func (c *Client) withCache(list []endpoint) []endpoint {
	if c.cache == nil {
		return list
	}
	i := slices.IndexFunc(list, func(e endpoint) bool { return !e.mirror })
	if i < 0 {
		return list
	}
	e := endpoint{registry: c.cache.address, repository: list[i].repository, mirror: true, cache: true, namespace: list[i].registry}
	return c.byHealth(append([]endpoint{e}, list...))
}

// withoutCache is the list of the others.
func withoutCache(list []endpoint) []endpoint {
	return slices.DeleteFunc(slices.Clone(list), func(e endpoint) bool { return e.cache })
}

// getCached is get for the node's cache, which is asked once and without login.
func (c *Client) getCached(ctx context.Context, a asked, path string, header http.Header) (*http.Response, error) {
	address := c.cache.base + "/v2/" + a.endpoint.repository + path + "?" + url.Values{"ns": {a.endpoint.namespace}}.Encode()
	trace := &answerTrace{address: address}
	trace.blob, _ = ctx.Value(blobRequest{}).(bool)
	ctx = context.WithValue(ctx, traceKey{}, trace)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, a.fail(errdefs.ErrInvalidArgument, "%v", err)
	}
	for _, h := range []http.Header{c.header, header} {
		for k, v := range h {
			req.Header[k] = v
		}
	}
	resp, err := c.cache.client.Do(req)
	if err != nil {
		return nil, a.broken(ctx, err, 0)
	}
	body := &answerBody{ReadCloser: resp.Body, ctx: ctx, asked: a}
	if resp.StatusCode >= http.StatusBadRequest {
		defer func() { _ = body.Close() }()
		return nil, a.refused(resp.StatusCode, 0, errorBody(body))
	}
	resp.Body = body
	return resp, nil
}

// cachedBody is a blob that comes from the node's cache, and whose rest comes
// from the other endpoints where the cache fails in the middle: no caller has to
// wait and try again for it. Bytes of the cache are no better than those that it
// would have sent whole: the reader of the blob checks them all.
type cachedBody struct {
	io.ReadCloser
	ctx          context.Context //nolint:containedctx // of the one blob that this is
	offset, size int64
	elsewhere    func(offset int64) (io.ReadCloser, error) // nil once it was called
}

func (b *cachedBody) Read(p []byte) (int, error) {
	for b.elsewhere != nil {
		if b.offset == b.size { // the cache may have more: nobody asked for it
			return 0, io.EOF
		}
		n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.size-b.offset)])
		b.offset += int64(n)
		if err != nil && b.offset < b.size && b.ctx.Err() == nil {
			err = b.leave()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
	return b.ReadCloser.Read(p)
}

// leave goes on without the cache.
func (b *cachedBody) leave() error {
	_ = b.Close() // it has failed already
	open := b.elsewhere
	b.elsewhere, b.ReadCloser = nil, http.NoBody
	body, err := open(b.offset)
	if err != nil {
		return err
	}
	b.ReadCloser = body
	return nil
}
