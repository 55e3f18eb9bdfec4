// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Error is what a registry, or the way to it, answered. It unwraps to its
// errdefs class.
type Error struct {
	// Registry is the host as the reference names it; What is what was asked
	// of it (an image, or a blob of one).
	Registry, What string
	// Status is the HTTP status, 0 where there was no answer.
	Status int
	// Temporary is true where the same request may succeed later.
	Temporary bool
	// RetryAfter is the pause the registry asked for, 0 if it asked for none.
	RetryAfter time.Duration

	text  string
	class error
}

func (e *Error) Error() string {
	return "registry " + e.Registry + ": " + e.What + ": " + e.text
}

func (e *Error) Unwrap() error { return e.class }

// errStalled is the cause of a request cancelled for want of bytes.
var errStalled = errors.New("no byte came")

// asked says what a request was for, so that its errors can.
type asked struct {
	registry, what string
}

func (a asked) fail(class error, format string, args ...any) *Error {
	return &Error{Registry: a.registry, What: a.what, text: fmt.Sprintf(format, args...), class: class}
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
		e = a.fail(errdefs.ErrUnauthenticated, "refused without valid credentials%s: set credentials for %s in [registry] credentials of coffer-guest's configuration", detail, a.registry)
	case status == http.StatusForbidden:
		e = a.fail(errdefs.ErrPermissionDenied, "refused for these credentials%s: set credentials that may pull it in [registry] credentials of coffer-guest's configuration", detail)
	case status == http.StatusNotFound:
		e = a.fail(errdefs.ErrNotFound, "not there%s: check the name, and that the push finished", detail)
	case status == http.StatusTooManyRequests:
		e = a.fail(errdefs.ErrUnavailable, "too many requests%s: try again later, or set credentials with a higher limit", detail)
	case status == http.StatusRequestTimeout || status >= 500:
		e = a.fail(errdefs.ErrUnavailable, "%s%s: try again later", statusText(status), detail)
	default:
		e = a.fail(errdefs.ErrUnknown, "unexpected answer %s%s: is this an OCI registry?", statusText(status), detail)
	}
	e.Status, e.RetryAfter = status, retryAfter
	e.Temporary = errdefs.IsUnavailable(e.class)
	return e
}

// broken turns an error of the transport into an Error. The URL is left out of
// it: after a redirect it may carry a signature. An end of ctx stays one.
func (a asked) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return fmt.Errorf("registry %s: %s: %w", a.registry, a.what, cause)
	}
	var answered *errcode.ErrorResponse
	if errors.As(err, &answered) {
		return a.refused(answered.StatusCode, 0, detailOf(answered.Errors))
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return a.refused(http.StatusUnauthorized, 0, "")
	}
	for inner := (*url.Error)(nil); errors.As(err, &inner); {
		err = inner.Err
	}
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	switch {
	case errors.As(err, &unknownCA):
		return a.fail(errdefs.ErrUnavailable, "certificate of an unknown authority: add its CA to [registry] ca_files")
	case errors.As(err, &wrongHost):
		return a.fail(errdefs.ErrUnavailable, "%v: name the registry as its certificate does", wrongHost)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return a.fail(errdefs.ErrUnavailable, "it speaks plain HTTP: add %s to [registry] insecure of coffer-guest's configuration if that is intended", a.registry)
	}
	e := a.fail(errdefs.ErrUnavailable, "%v: check that the registry runs and can be reached", err)
	e.Temporary = true
	return e
}

// detailOf is the registry's own words, cut and cleaned for one log line.
func detailOf(errs errcode.Errors) string {
	if len(errs) == 0 {
		return ""
	}
	return clip(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, errcode.Error{Code: errs[0].Code, Message: errs[0].Message}.Error()), 200)
}

func statusText(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}
