// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/coffer-cc/coffer/kbs/resource"
	"github.com/containerd/errdefs"
)

const (
	defaultDeadline = 15 * time.Second
	// maxResource bounds the JWE of a resource. What a guest can pass on over
	// ttrpc is about half of it.
	maxResource = 8 << 20
	// initDataFormat is the only one that services read.
	initDataFormat = "toml"
)

// EvidenceSource is this machine's attester.
type EvidenceSource interface {
	// TEE returns the wire name of the TEE, such as "tdx".
	TEE() string
	// Evidence returns the TEE's evidence, as JSON, with reportData in it.
	Evidence(ctx context.Context, reportData []byte) ([]byte, error)
}

// ClientOptions are the optional settings of a Client.
type ClientOptions struct {
	// CA has certificates in PEM form that are trusted beside the system's.
	CA []byte
	// Deadline bounds each call, its retries and the handshake it may need
	// included; 0 means 15 seconds.
	Deadline time.Duration
	// InitData is the text of the init-data that this TEE was launched with, in
	// TOML, which each attestation carries, so that the service's policies see
	// it. The service holds it against the evidence. Empty sends none.
	InitData string
	// Logger is used for handshakes; nil discards.
	Logger *slog.Logger
}

// Client gets resources for this TEE. It attests when the first resource is
// asked for and keeps the token until shortly before it expires; all calls that
// wait for a token share one handshake. It is safe for concurrent use.
type Client struct {
	*transport
	source   EvidenceSource
	initData *rcar.InitData // nil if there is none
	log      *slog.Logger
	flying   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	cached *session
	flight *flight
}

// flight is a handshake under way. session and err are set before done is
// closed.
type flight struct {
	cancel  context.CancelFunc
	done    chan struct{}
	session *session
	err     error
}

// NewClient returns a client of the service at url, which may have a path. It
// makes no connection. With an http URL, answers cannot be told from a forger's
// except for the resources themselves, so it is for tests and for links that
// are protected otherwise. Close the client after use.
func NewClient(url string, src EvidenceSource, opts ClientOptions) (*Client, error) {
	if opts.Deadline <= 0 {
		opts.Deadline = defaultDeadline
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	t, err := newTransport(url, opts.CA, opts.Deadline)
	if err != nil {
		return nil, err
	}
	if t.plain {
		opts.Logger.Warn("kbs is reached without TLS: anyone on the way can see the evidence and use the token", "url", t.base)
	}
	c := &Client{transport: t, source: src, log: opts.Logger}
	if opts.InitData != "" {
		c.initData = &rcar.InitData{Format: initDataFormat, Body: opts.InitData}
	}
	return c, nil
}

// Close ends handshakes under way and waits for them. Calls that need one then
// fail.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cached = nil
	if c.flight != nil {
		c.flight.cancel()
	}
	c.mu.Unlock()
	c.flying.Wait()
	c.http.CloseIdleConnections()
	return nil
}

// GetResource returns the resource that uri names, attesting first if there is
// no token. A refused token is replaced once, and so is one that policy denies
// and that is older than the call, since what the key owner has registered
// meanwhile shows in a new appraisal. Failures of the network, 429 and
// 5xx answers are retried within the deadline. Errors that came from the
// service are *Error. The caller owns the result and should clear it.
func (c *Client) GetResource(ctx context.Context, uri string) ([]byte, error) {
	u, err := resource.ParseURI(uri)
	if err != nil {
		return nil, c.invalid("get", err.Error())
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	op := "get " + u.String()
	began := time.Now()
	var stale *session
	for {
		s, err := c.attested(ctx, stale)
		if err != nil {
			return nil, err
		}
		plain, err := retry(ctx, func() ([]byte, error) { return c.get(ctx, op, u, s) })
		outdated := errors.Is(err, errdefs.ErrPermissionDenied) && s.made.Before(began)
		if !outdated && !errors.Is(err, errdefs.ErrUnauthenticated) {
			return plain, err
		}
		if stale != nil {
			var e *Error
			if errors.As(err, &e) {
				e.Detail += " (again after attesting anew)"
			}
			return nil, err
		}
		stale = s
	}
}

func (c *Client) get(ctx context.Context, op string, u resource.URI, s *session) ([]byte, error) {
	a, err := c.do(ctx, request{
		op: op, method: http.MethodGet, path: u.RequestPath(),
		header:  http.Header{"Authorization": {"Bearer " + s.token}},
		cookies: s.cookies, limit: maxResource, secret: s.token,
	})
	if err != nil {
		return nil, err
	}
	plain, err := decrypt(a.body, s.key)
	if err != nil {
		return nil, &Error{
			URL: c.base, Op: op, Detail: err.Error(),
			class: errdefs.ErrDataLoss, next: nextStep(errdefs.ErrDataLoss, ""),
		}
	}
	return plain, nil
}

// AgentToken returns what an Attestation Agent hands out as a token of
// tokenType, of which there is "kbs": JSON with the members token and
// tee_keypair, the latter a PKCS #8 key in PEM form. It attests if there is no
// token. The result holds a private key: it is for the resource client in the
// same TEE only.
func (c *Client) AgentToken(ctx context.Context, tokenType string) ([]byte, error) {
	if tokenType != "kbs" {
		return nil, fmt.Errorf("token type %q: only \"kbs\" is offered: %w", tokenType, errdefs.ErrNotImplemented)
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	s, err := c.attested(ctx, nil)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return nil, fmt.Errorf("encode the TEE's key: %w", errdefs.ErrInternal)
	}
	defer clear(der)
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(block)
	return json.Marshal(struct {
		Token      string `json:"token"`
		TEEKeyPair string `json:"tee_keypair"`
	}{s.token, string(block)})
}

// attested returns the cached session, or the one that the handshake under way
// or a new one brings. A session that the service refused is passed as stale
// and not returned.
func (c *Client) attested(ctx context.Context, stale *session) (*session, error) {
	s, f := c.join(ctx, stale)
	if s != nil {
		return s, nil
	}
	select {
	case <-f.done:
		return f.session, f.err
	case <-ctx.Done():
		return nil, c.unreachable(ctx, opAttest, ctx.Err())
	}
}

// join returns a usable session, or a flight to wait for.
func (c *Client) join(ctx context.Context, stale *session) (*session, *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cached != nil && c.cached != stale && c.cached.fresh(time.Now()) {
		return c.cached, nil
	}
	if c.flight != nil {
		return nil, c.flight
	}
	c.cached = nil
	f := &flight{done: make(chan struct{})}
	if c.closed {
		f.err = &Error{URL: c.base, Op: opAttest, Detail: "client is closed", class: errdefs.ErrUnavailable}
		close(f.done)
		return nil, f
	}
	// The handshake has a deadline of its own: the call that begins it may be
	// gone while others wait for it.
	ctx, f.cancel = c.bounded(context.WithoutCancel(ctx))
	c.flight = f
	c.flying.Go(func() { c.fly(ctx, f) })
	return nil, f
}

// fly makes the handshake of f.
func (c *Client) fly(ctx context.Context, f *flight) {
	defer f.cancel()
	began := time.Now()
	f.session, f.err = retry(ctx, func() (*session, error) { return c.handshake(ctx) })
	if f.err == nil {
		c.log.InfoContext(ctx, "attested", "url", c.base, "tee", c.source.TEE(), "took", time.Since(began).Round(time.Millisecond))
	}
	c.mu.Lock()
	c.flight = nil
	if !c.closed {
		c.cached = f.session
	}
	c.mu.Unlock()
	close(f.done)
}

// String names the client without its secrets.
func (c *Client) String() string { return "kbs client of " + c.base }

// GoString is String, for the same reason.
func (c *Client) GoString() string { return c.String() }
