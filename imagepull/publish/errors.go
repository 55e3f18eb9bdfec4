// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// ErrOutcomeUnknown marks the error of a run that wrote the whole image and
// got no answer to its last request: the image may be visible, and its keys
// must be kept.
var ErrOutcomeUnknown = errors.New("the image may be visible all the same")

// unsent reports whether the registry cannot have seen the request.
func unsent(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) && network.Op == "dial"
}

// registryError says who answered what, and what to do. what is the object
// asked for, as in "image app:v1" or "blob sha256:…".
func registryError(ref Reference, what string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	from := "registry " + ref.Registry
	var answer *errcode.ErrorResponse
	switch {
	case errors.As(err, &answer):
		return statusError(ref, what, answer)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return refused(ref, what, "asks for a login")
	case errors.Is(err, errdef.ErrNotFound):
		return classed{fmt.Errorf("%s: no %s in repository %s: check name and tag", from, what, ref.Repository), errdefs.ErrNotFound}
	case errors.Is(err, content.ErrMismatchedDigest), errors.Is(err, content.ErrTrailingData):
		return classed{fmt.Errorf("%s: %s: %w", from, what, err), errdefs.ErrDataLoss}
	}
	return transportError(ref, what, err)
}

func statusError(ref Reference, what string, answer *errcode.ErrorResponse) error {
	said := http.StatusText(answer.StatusCode)
	if len(answer.Errors) > 0 {
		said = answer.Errors.Error()
	}
	said = fmt.Sprintf("%d %s", answer.StatusCode, strings.ToLower(said))
	from := "registry " + ref.Registry
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized:
		return refused(ref, what, "answers "+said)
	case code == http.StatusForbidden:
		return classed{fmt.Errorf("%s: %s: %s: the login has no right to this in repository %s", from, what, said, ref.Repository),
			errdefs.ErrPermissionDenied}
	case code == http.StatusNotFound:
		return classed{fmt.Errorf("%s: no %s in repository %s (%s): check name and tag", from, what, ref.Repository, said), errdefs.ErrNotFound}
	case code == http.StatusTooManyRequests, code >= http.StatusInternalServerError:
		return classed{fmt.Errorf("%s: %s: %s: try again later", from, what, said), errdefs.ErrUnavailable}
	case code == http.StatusBadRequest && answer.URL != nil && answer.URL.Scheme == "http":
		return classed{fmt.Errorf("%s: %s: %s: asked over plain http; if it speaks https, leave out --plain-http (on this machine: --https %s)",
			from, what, said, ref.Registry), errdefs.ErrInvalidArgument}
	}
	return classed{fmt.Errorf("%s: %s: %s", from, what, said), errdefs.ErrInvalidArgument}
}

func refused(ref Reference, what, said string) error {
	return classed{fmt.Errorf("registry %s: %s: %s: log in with docker login %s, or name a file with --credentials",
		ref.Registry, what, said, ref.Registry), errdefs.ErrUnauthenticated}
}

func transportError(ref Reference, what string, err error) error {
	from, text := "registry "+ref.Registry, err.Error()
	var network net.Error
	switch {
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return classed{fmt.Errorf("%s: %s: it speaks plain http: say --plain-http %s if that is meant", from, what, ref.Registry), errdefs.ErrFailedPrecondition}
	case strings.Contains(text, "tls: ") || strings.Contains(text, "x509: "):
		return classed{fmt.Errorf("%s: %s: %w", from, what, err), errdefs.ErrFailedPrecondition}
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return classed{fmt.Errorf("%s: %s: no answer: %w", from, what, err), errdefs.ErrUnavailable}
	}
	return fmt.Errorf("%s: %s: %w", from, what, err)
}

// fileError gives a full disk its class and says where it is.
func fileError(dir string, need int64, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return classed{fmt.Errorf("out of space in %s: the encrypted layer needs %d bytes there: free some or choose another folder", dir, need),
			errdefs.ErrResourceExhausted}
	}
	return err
}
