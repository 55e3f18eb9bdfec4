// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cenkalti/backoff/v5"
	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/containerd/errdefs"
)

const (
	apiPrefix      = "/kbs/v0/"
	userAgent      = "coffer-kbs-client/" + rcar.Version
	connectTimeout = 5 * time.Second
	maxErrorBody   = 64 << 10
	maxDetail      = 1 << 10
)

// errDeadline is the cause of contexts that end by this package's own deadline,
// and not by the caller's.
var errDeadline = errors.New("deadline of the call")

// transport makes single HTTP requests to one service and turns whatever comes
// back into an answer or an *Error.
type transport struct {
	base     string // without slash at the end
	plain    bool   // http to a host that is not loopback
	http     *http.Client
	deadline time.Duration
}

type request struct {
	op          string
	method      string
	path        string // begins with apiPrefix, escaped
	header      http.Header
	cookies     cookies
	contentType string
	body        []byte
	limit       int64  // of the answer's body, in bytes
	secret      string // never to be quoted from an error body
}

type answer struct {
	status  int
	header  http.Header
	cookies []*http.Cookie
	body    []byte
}

func newTransport(rawURL string, ca []byte, deadline time.Duration) (*transport, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if len(ca) > 0 && !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("kbs %s: CA file has no certificate in PEM form: %w", u, errdefs.ErrInvalidArgument)
	}
	return &transport{
		base:     u.String(),
		plain:    u.Scheme == "http" && !isLoopback(u.Hostname()),
		deadline: deadline,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
				TLSHandshakeTimeout: connectTimeout,
				TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				MaxIdleConnsPerHost: 4,
				IdleConnTimeout:     30 * time.Second,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Host == "", u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("kbs url is not of the form https://host[:port]: %w", errdefs.ErrInvalidArgument)
	case strings.HasSuffix(strings.TrimRight(u.Path, "/"), strings.TrimRight(apiPrefix, "/")):
		return nil, fmt.Errorf("kbs url %s: leave out %s: %w", u.Redacted(), apiPrefix, errdefs.ErrInvalidArgument)
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return nil, fmt.Errorf("kbs url %s has a user name, query or fragment; leave it out: %w", u.Redacted(), errdefs.ErrInvalidArgument)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bounded returns a context that ends with the transport's own deadline.
func (t *transport) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, t.deadline, errDeadline)
}

// do makes one request. Any status but 200 is an *Error.
func (t *transport) do(ctx context.Context, r request) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, t.base+r.path, bytes.NewReader(r.body))
	if err != nil {
		return answer{}, t.invalid(r.op, "request cannot be made")
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", userAgent)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	r.cookies.set(req)
	resp, err := t.http.Do(req)
	if err != nil {
		return answer{}, t.unreachable(ctx, r.op, err)
	}
	defer resp.Body.Close()
	limit := int64(maxErrorBody)
	if resp.StatusCode == http.StatusOK {
		limit = r.limit
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	a := answer{status: resp.StatusCode, header: resp.Header, cookies: resp.Cookies(), body: body}
	if a.status != http.StatusOK {
		return answer{}, t.refused(r, a)
	}
	if err != nil {
		return answer{}, t.unreachable(ctx, r.op, err)
	}
	if int64(len(body)) > limit {
		return answer{}, t.strange(r.op, fmt.Sprintf("answer is larger than %d bytes", limit))
	}
	return a, nil
}

// refused turns an answer that is not a success into an *Error.
func (t *transport) refused(r request, a answer) *Error {
	e := &Error{URL: t.base, Op: r.op, Status: a.status}
	if body, err := rcar.ParseError(a.body); err == nil && body.Detail+body.Type != "" {
		e.Type, e.Reason = body.Type, body.Reason
		e.Detail = readable(body.Detail, r.secret)
	} else {
		e.Detail = http.StatusText(a.status) + ", without the reason that a KBS would give"
	}
	e.class = classify(a.status, e.variant())
	e.next = nextStep(e.class, e.variant())
	if a.status == http.StatusBadRequest && bytes.Contains(a.body, []byte("HTTP request to an HTTPS server")) {
		e.next = "configure the KBS's URL with https:"
	}
	if 300 <= a.status && a.status < 400 {
		e.Detail = "redirects are not followed"
		e.next = "configure the URL that the KBS itself listens on"
	}
	if isTemporary(a.status) {
		e.temporary = true
		e.retryAfter = retryAfter(a.header.Get("Retry-After"), time.Now())
		if e.retryAfter > 0 {
			e.next = fmt.Sprintf("try again in %v, as the KBS asks", e.retryAfter.Round(time.Second))
		}
	}
	return e
}

// isTemporary reports whether the same request may succeed soon.
func isTemporary(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return status >= 500
}

// unreachable turns an error of the network into an *Error. The caller's own
// cancellation stays what it is.
func (t *transport) unreachable(ctx context.Context, op string, err error) *Error {
	e := &Error{URL: t.base, Op: op, class: errdefs.ErrUnavailable, next: nextStep(errdefs.ErrUnavailable, "")}
	if ctx.Err() != nil {
		if context.Cause(ctx) == errDeadline { //nolint:errorlint // set by bounded, never wrapped
			e.Detail = fmt.Sprintf("no answer within %v", t.deadline)
			return e
		}
		e.Detail, e.class, e.next = ctx.Err().Error(), ctx.Err(), ""
		return e
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // the outer error repeats the URL
	}
	e.Detail = readable(err.Error(), "")
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &cert):
		e.next = "configure the CA of the KBS's certificate (--kbs-ca, or kbs.ca_file of the guest), or a URL with the name that the certificate has"
	case errors.Is(err, http.ErrSchemeMismatch):
		e.next = "configure the KBS's URL with http: if it is meant to serve without TLS"
	default:
		var dial *net.OpError
		e.unsent = errors.As(err, &dial) && dial.Op == "dial"
		e.temporary = true
	}
	return e
}

// strange is the error for a success that makes no sense, usually a proxy's.
func (t *transport) strange(op, detail string) *Error {
	return &Error{
		URL: t.base, Op: op, Detail: detail, class: errdefs.ErrUnavailable,
		next: "check that the URL is a KBS's and that no proxy answers in its place",
	}
}

func (t *transport) invalid(op, detail string) *Error {
	return &Error{URL: t.base, Op: op, Detail: detail, class: errdefs.ErrInvalidArgument}
}

// retry repeats try while it fails with a temporary *Error and ctx has time
// left for the next pause. It returns the last error of try itself.
func retry[T any](ctx context.Context, try func() (T, error)) (T, error) {
	var last error
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.Multiplier, pause.MaxInterval = 200*time.Millisecond, 2, 4*time.Second
	opts := []backoff.RetryOption{backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0)}
	if end, ok := ctx.Deadline(); ok {
		opts = append(opts, backoff.WithMaxElapsedTime(max(time.Until(end), time.Nanosecond)))
	}
	out, err := backoff.Retry(ctx, func() (T, error) {
		var out T
		out, last = try()
		var e *Error
		switch {
		case last == nil:
			return out, nil
		case !errors.As(last, &e) || !e.temporary:
			return out, backoff.Permanent(last)
		case e.retryAfter > 0:
			return out, &backoff.RetryAfterError{Duration: e.retryAfter}
		}
		return out, last
	}, opts...)
	if err == nil {
		return out, nil
	}
	return out, last
}

// retryAfter parses the header of that name. Zero means that it says nothing.
func retryAfter(value string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// readable makes text of the other side fit for an error: one line, bounded,
// and without secret.
func readable(s, secret string) string {
	if secret != "" {
		s = strings.ReplaceAll(s, secret, "[redacted]")
	}
	s = strings.TrimSpace(strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, s))
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "..."
	}
	if s == "" {
		return "no detail given"
	}
	return s
}
