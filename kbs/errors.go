// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/containerd/errdefs"
)

// Error is a failed call to a Key Broker Service. Its class is one of
// containerd/errdefs, or a context error when the caller gave up:
//
//   - Unauthenticated: evidence refused, or token refused after attesting again
//   - PermissionDenied: attested, but policy refuses
//   - NotFound, AlreadyExists, InvalidArgument: as they say
//   - Unavailable: no answer, an overloaded or broken service, or an answer that
//     is not a Key Broker Service's
//   - DataLoss: the resource does not open with this TEE's key
type Error struct {
	URL    string       // of the service
	Op     string       // what was asked
	Status int          // HTTP status; 0 without an answer
	Type   string       // error type of the protocol, if the answer had one
	Detail string       // what happened, on one line
	Reason *rcar.Reason // why, if the service says so

	class      error
	next       string
	temporary  bool // worth another try in this call
	unsent     bool // the service never saw the request
	retryAfter time.Duration
}

// Error returns one line: who, what was asked, what came, and what to do next.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kbs %s: %s: ", e.URL, e.Op)
	if e.Status != 0 {
		fmt.Fprintf(&b, "answer %d", e.Status)
		if v := e.variant(); v != "" {
			b.WriteString(" " + v)
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Detail)
	if r := e.reason(); r != "" {
		if !strings.HasPrefix(r, "(") { // no more than the trace
			b.WriteString(";")
		}
		b.WriteString(" " + r)
	}
	if e.Reason != nil && e.Reason.NextStep != "" {
		return b.String()
	}
	if e.next != "" {
		b.WriteString("; next: " + e.next)
	}
	return b.String()
}

// reason is the text of Reason, or its trace alone where Detail, for clients
// that do not know of reasons, has the rest.
func (e *Error) reason() string {
	if e.Reason == nil {
		return ""
	}
	r := *e.Reason
	r.TraceID = ""
	if text := r.String(); text == "" || !strings.Contains(e.Detail, text) {
		return e.Reason.String()
	}
	return (&rcar.Reason{TraceID: e.Reason.TraceID}).String()
}

// Unwrap returns the class. The cause is in the text only, so that an error of
// the network never decides the class.
func (e *Error) Unwrap() error { return e.class }

func (e *Error) variant() string { return rcar.Error{Type: e.Type}.Variant() }

// classify maps an answer to a class. Services answer 401 to nearly
// everything, so the error's variant counts before the status.
func classify(status int, variant string) error {
	switch variant {
	case "PolicyDeny":
		return errdefs.ErrPermissionDenied
	case "PluginNotFound":
		return errdefs.ErrNotFound
	case "InvalidRequestPath":
		return errdefs.ErrInvalidArgument
	}
	if status == http.StatusUnauthorized {
		switch variant {
		case "PluginInternalError": // also what a missing resource gives
			return errdefs.ErrNotFound
		case "ParsePolicyError", "SerdeError":
			return errdefs.ErrInvalidArgument
		case "JweError", "PolicyEngineError", "RvpsError", "StorageBackendInitialization", "PluginManagerInitialization":
			return errdefs.ErrUnavailable
		}
	}
	return classOfStatus(status)
}

func classOfStatus(status int) error {
	switch {
	case status == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case status == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case status == http.StatusNotFound, status == http.StatusGone:
		return errdefs.ErrNotFound
	case status == http.StatusConflict, status == http.StatusPreconditionFailed:
		return errdefs.ErrAlreadyExists
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		return errdefs.ErrUnavailable
	case status >= 400:
		return errdefs.ErrInvalidArgument
	default: // a redirect, or a success that the protocol does not have
		return errdefs.ErrUnavailable
	}
}

// nextStep is the advice for errors of which the service gives none.
func nextStep(class error, variant string) string {
	switch {
	case errors.Is(class, errdefs.ErrUnauthenticated):
		return "look in the KBS's log for why it refused this machine's evidence, and register its reference values or switch its TEE type on"
	case errors.Is(class, errdefs.ErrPermissionDenied):
		return "have the resource's owner allow this machine in the KBS's resource policy"
	case errors.Is(class, errdefs.ErrNotFound):
		if variant == "PluginInternalError" {
			return "check that the resource is registered with the KBS; if it is, the KBS's log says what went wrong"
		}
		return "have the resource's owner register it with the KBS, or correct its name"
	case errors.Is(class, errdefs.ErrInvalidArgument):
		return "correct the request; client and KBS may also speak different versions"
	case errors.Is(class, errdefs.ErrDataLoss):
		return "check that nothing between this machine and the KBS changes its answers, then try again"
	case errors.Is(class, errdefs.ErrUnavailable):
		return "check that the KBS runs and that its URL is right, then try again"
	}
	return ""
}
