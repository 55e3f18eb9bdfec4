// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// refusal is why a requirement does not hold, what to do about it, and its
// class.
type refusal struct {
	why, next string
	class     error
}

func (r *refusal) Error() string { return r.why + ": " + r.next }
func (r *refusal) Unwrap() error { return r.class }

// refused is the refusal of an image.
func refused(next, format string, args ...any) *refusal {
	return &refusal{why: fmt.Sprintf(format, args...), next: next, class: errdefs.ErrPermissionDenied}
}

// decided is an error with the text that a caller shows and one class. The end
// of the caller's context stays visible below it.
type decided struct {
	text  string
	class error
	cause error
}

func (d *decided) Error() string { return d.text }
func (d *decided) Unwrap() []error {
	if d.cause != nil {
		return []error{d.class, d.cause}
	}
	return []error{d.class}
}

// decide makes the error of a requirement that does not hold.
func decide(ctx context.Context, scope, kind string, err error) error {
	d := &decided{class: errdefs.ErrPermissionDenied, cause: context.Cause(ctx)}
	switch {
	case errors.Is(err, errdefs.ErrPermissionDenied), errors.Is(err, errdefs.ErrUnauthenticated):
	case d.cause != nil, errdefs.IsUnavailable(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		d.class = errdefs.ErrUnavailable
	case errdefs.IsInvalidArgument(err):
		d.class = errdefs.ErrInvalidArgument
	case errdefs.IsFailedPrecondition(err):
		d.class = errdefs.ErrFailedPrecondition
	}
	d.text = fmt.Sprintf("image policy: %s requires %s: %v", scope, kind, err)
	return d
}

// reasons collects why signatures were not accepted.
type reasons struct {
	texts []string
	total int
	away  error // the first place that could not be asked
	bare  bool  // a bundle that names no image
}

const shownReasons = 3

func (r *reasons) add(where string, err error) {
	r.total++
	text := where + ": " + err.Error()
	if len(r.texts) < shownReasons {
		r.texts = append(r.texts, clip(text, 400))
	}
	r.bare = r.bare || errors.Is(err, errNamesNone)
}

// unreachable records that a place could not be asked.
func (r *reasons) unreachable(err error) {
	if r.away == nil {
		r.away = err
	}
}

func (r *reasons) String() string {
	s := strings.Join(r.texts, "; ")
	if more := r.total - len(r.texts); more > 0 {
		s += fmt.Sprintf("; and %d more", more)
	}
	return s
}

// refuse sums up. Where a place could not be asked the answer is not known,
// and asking again may help.
func (r *reasons) refuse(nothing, next string) error {
	switch {
	case r.away != nil:
		var class error = errdefs.ErrUnavailable
		if errdefs.IsPermissionDenied(r.away) || errdefs.IsUnauthorized(r.away) {
			class = errdefs.ErrPermissionDenied
		}
		why := "signatures cannot be read: " + r.away.Error()
		if r.total > 0 {
			why = "no signature is accepted (" + r.String() + "), and others cannot be read: " + r.away.Error()
		}
		return &refusal{why: why, next: "try again when the registry or signature store answers", class: class}
	case r.total == 0:
		return refused(next, "%s", nothing)
	case r.bare:
		return refused(nextSignedIdentityBundle, "no signature is accepted (%s)", r)
	}
	return refused("sign the image with a key and a name that the policy accepts", "no signature is accepted (%s)", r)
}
