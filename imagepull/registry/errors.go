// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Error is what a registry, or the way to it, answered. It unwraps to its
// errdefs class. Where several endpoints were asked it speaks for all of them:
// with the class of the most telling answer, and temporary if one of them is.
type Error struct {
	// Registry is the host as the reference names it; What is what was asked
	// of it (an image, or a blob of one). Registry is empty where none was
	// asked, for want of the registries configuration.
	Registry, What string
	// Status is the HTTP status, 0 where there was no answer.
	Status int
	// Temporary is true where the same request may succeed later.
	Temporary bool
	// RetryAfter is the pause the registry asked for, 0 if it asked for none.
	RetryAfter time.Duration

	via   string // the endpoint's name, where it is not the registry's own
	text  string
	hint  string // what to do next
	class error
}

func (e *Error) Error() string {
	if e.Registry == "" {
		return e.What + ": " + e.text
	}
	s := "registry " + e.Registry + ": " + e.What + ": "
	if e.via != "" {
		s += e.via + ": "
	}
	s += e.text
	if e.hint != "" {
		s += ": " + e.hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.class }

// advise adds what to do next.
func (e *Error) advise(format string, args ...any) *Error {
	e.hint = fmt.Sprintf(format, args...)
	return e
}

// errStalled is the cause of a request cancelled for want of bytes.
var errStalled = errors.New("no byte came")

// errSlow is that of a small answer whose bytes come too slowly.
var errSlow = errors.New("too slow")

// asked says what a request was for, so that its errors can.
type asked struct {
	registry, what string
	endpoint       endpoint
	via            string
}

func newAsked(r Reference, e endpoint, what string) asked {
	a := asked{registry: r.Registry, what: what, endpoint: e}
	if e.name() != r.Name() {
		a.via = e.name()
	}
	return a
}

func (a asked) fail(class error, format string, args ...any) *Error {
	return &Error{Registry: a.registry, What: a.what, via: a.via, text: fmt.Sprintf(format, args...), class: class}
}

// combine makes one error of those of several endpoints, in order.
func combine(r Reference, what string, failed []*Error) error {
	if len(failed) == 1 {
		return failed[0]
	}
	all := &Error{Registry: r.Registry, What: what}
	texts := make([]string, len(failed))
	most := -1
	// What is asked again is all of them: when the first of those may be that
	// will answer.
	soonest := time.Duration(math.MaxInt64)
	for i, e := range failed {
		name := e.via
		if name == "" {
			name = r.Name()
		}
		texts[i] = name + ": " + e.text
		if e.Temporary {
			all.Temporary = true
			soonest = min(soonest, e.RetryAfter)
		}
		if t := telling(e); t > most {
			most, all.Status, all.hint, all.class = t, e.Status, e.hint, e.class
		}
	}
	if all.Temporary {
		all.RetryAfter = soonest
	}
	all.text = strings.Join(texts, "; ")
	return all
}

// telling ranks errors by how much they say about what must be mended.
func telling(e *Error) int {
	switch {
	case errdefs.IsDataLoss(e.class):
		return 6
	case errdefs.IsPermissionDenied(e.class):
		return 5
	case errdefs.IsUnauthorized(e.class):
		return 4
	case errdefs.IsUnavailable(e.class):
		return 3
	case errdefs.IsNotFound(e.class):
		return 1
	}
	return 2
}

// refused turns an HTTP status that is no success into an Error. detail is
// the registry's own text and may be empty.
func (a asked) refused(status int, retryAfter time.Duration, detail string) *Error {
	if detail != "" {
		detail = " (" + detail + ")"
	}
	var e *Error
	switch {
	case status == http.StatusUnauthorized:
		e = a.fail(errdefs.ErrUnauthenticated, "refused without valid credentials%s", detail).
			advise("set credentials for %s in [registry] credentials of coffer-guest's configuration", a.endpoint.registry)
	case status == http.StatusForbidden:
		e = a.fail(errdefs.ErrPermissionDenied, "refused for these credentials%s", detail).
			advise("set credentials that may pull it in [registry] credentials of coffer-guest's configuration")
	case status == http.StatusNotFound:
		e = a.fail(errdefs.ErrNotFound, "not there%s", detail).advise("check the name, and that the push finished")
	case status == http.StatusTooManyRequests:
		e = a.fail(errdefs.ErrUnavailable, "too many requests%s", detail).advise("try again later, or set credentials with a higher limit")
	case status == http.StatusRequestTimeout || status >= 500:
		e = a.fail(errdefs.ErrUnavailable, "%s%s", statusText(status), detail).advise("try again later")
	case status == http.StatusBadRequest:
		// So answers a server with TLS that is spoken to without.
		e = a.fail(errdefs.ErrUnknown, "unexpected answer %s%s", statusText(status), detail).
			advise("is this an OCI registry, and does it speak plain HTTP, if it is asked so?")
	default:
		e = a.fail(errdefs.ErrUnknown, "unexpected answer %s%s", statusText(status), detail).advise("is this an OCI registry?")
	}
	e.Status, e.RetryAfter = status, retryAfter
	e.Temporary = errdefs.IsUnavailable(e.class)
	return e
}

// broken turns an error of the transport into an Error. The URL is left out of
// it: after a redirect it may carry a signature. An end of ctx stays one.
func (a asked) broken(ctx context.Context, err error, retryAfter time.Duration) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("registry %s: %s: %w", a.registry, a.what, cause)
	}
	var answered *errcode.ErrorResponse
	if errors.As(err, &answered) { // by the token server
		e := a.refused(answered.StatusCode, retryAfter, detailOf(answered.Errors))
		if errdefs.IsNotFound(e.class) { // it is not the image that is not there
			e.class, e.text = errdefs.ErrUnknown, "its token server answers "+statusText(answered.StatusCode)
			e.hint = "mend the registry, or give it credentials of another kind"
		}
		return e
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return a.refused(http.StatusUnauthorized, 0, "")
	}
	if strings.Contains(err.Error(), ": missing username or password for ") { // the auth client's own
		return a.refused(http.StatusUnauthorized, 0, "the credentials are not of the kind it asks for: it wants user and password")
	}
	var noCredential *credentialError
	if errors.As(err, &noCredential) {
		e := a.fail(errdefs.Resolve(noCredential.err), "%v", noCredential.err)
		e.Temporary = errdefs.IsUnavailable(e.class)
		return e
	}
	for inner := (*url.Error)(nil); errors.As(err, &inner); {
		err = inner.Err
	}
	if e := a.untrusted(err); e != nil {
		return e
	}
	var proxy *proxyError
	if errors.As(err, &proxy) {
		e := a.fail(errdefs.ErrUnavailable, "%v", proxy).advise("see [registry.proxy] of coffer-guest's configuration")
		e.Temporary = proxy.status >= 500 || proxy.status == http.StatusTooManyRequests
		return e
	}
	if strings.Contains(err.Error(), "failed to parse Location header") { // which it quotes
		return a.fail(errdefs.ErrUnknown, "it redirects to what is no address").advise("is this an OCI registry?")
	}
	if _, why, ok := strings.Cut(err.Error(), "bearer realm "); ok { // the auth client refuses the token server
		return a.fail(errdefs.ErrPermissionDenied, "its token server %s", clean(why)).advise("no credentials were sent; mend the registry, or name it in [registry] insecure")
	}
	if strings.Contains(err.Error(), "refusing to resend a token request body") {
		return a.fail(errdefs.ErrPermissionDenied, "its token server redirects to another host").advise("no credentials were sent there; mend the registry")
	}
	e := a.fail(errdefs.ErrUnavailable, "%s", clean(withoutAddress(err.Error()))).advise("check that the registry runs and can be reached")
	e.Temporary = true
	return e
}

// withoutAddress takes away what the auth client puts before its errors: method
// and quoted URL, one for each request that led to them.
func withoutAddress(text string) string {
	for {
		method, rest, _ := strings.Cut(text, " ")
		address, err := strconv.QuotedPrefix(rest)
		if method != http.MethodGet && method != http.MethodPost || err != nil {
			return text
		}
		text = strings.TrimPrefix(rest[len(address):], ": ")
	}
}

// untrusted explains what TLS does not accept; nil for all other errors.
func (a asked) untrusted(err error) *Error {
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	switch {
	case errors.As(err, &unknownCA):
		return a.fail(errdefs.ErrUnavailable, "certificate of an unknown authority").advise("add its CA to [registry] ca_files")
	case errors.As(err, &wrongHost):
		return a.fail(errdefs.ErrUnavailable, "%s", clean(wrongHost.Error())).advise("name the registry as its certificate does")
	case errors.As(err, &invalid):
		return a.fail(errdefs.ErrUnavailable, "%s", clean(invalid.Error())).advise("renew its certificate, and check the clock")
	case strings.Contains(text, "tls: certificate required"), strings.Contains(text, "tls: bad certificate"):
		return a.fail(errdefs.ErrUnauthenticated, "it wants another client certificate").advise("put one for %s in [registry] certs_dir", a.endpoint.registry)
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return a.fail(errdefs.ErrUnavailable, "it speaks plain HTTP").
			advise("add %s to [registry] insecure of coffer-guest's configuration if that is intended", a.endpoint.registry)
	}
	return nil
}

// credentialError is that of the source of credentials, so that it can be told
// from the registry's.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// proxyError is a refusal of a proxy.
type proxyError struct {
	proxy  string
	status int
}

func (e *proxyError) Error() string {
	return "proxy " + e.proxy + " answered " + statusText(e.status)
}

// detailOf is the registry's own words, cut and cleaned for one log line.
func detailOf(errs errcode.Errors) string {
	if len(errs) == 0 {
		return ""
	}
	return clean(errcode.Error{Code: errs[0].Code, Message: errs[0].Message}.Error())
}

// clean makes text from outside fit for one log line.
func clean(s string) string {
	return clip(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s), 200)
}

func statusText(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}
