// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/appraisal"
	"github.com/coffer-cc/coffer/kbs/rcar"
)

// problem is an answer other than success.
type problem struct {
	status     int
	variant    string // last step of the error's type
	detail     string
	reason     rcar.Reason
	allow      []string
	retryAfter time.Duration
	err        error // for the log
}

func (p *problem) Error() string {
	if p.err != nil {
		return p.err.Error()
	}
	return p.detail
}

func (p *problem) Unwrap() error { return p.err }

func methodNotAllowed(allow ...string) *problem {
	return &problem{
		status: http.StatusMethodNotAllowed, variant: "InvalidRequestPath",
		detail: "method not allowed; allowed: " + strings.Join(allow, ", "), allow: allow,
	}
}

func methodsOf(m map[string]handler) []string { return slices.Sorted(maps.Keys(m)) }

func badRequest(variant, format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, variant: variant, detail: fmt.Sprintf(format, args...)}
}

// fromClass makes a problem of an error by its class. The text of errors of
// the service's own innards goes to the log, not to the caller.
func fromClass(variant string, err error) *problem {
	var known *problem
	if errors.As(err, &known) {
		return known
	}
	p := &problem{variant: variant, detail: err.Error(), err: err}
	var tooLarge *http.MaxBytesError
	var refusal *appraisal.Refusal
	switch {
	case errors.As(err, &tooLarge):
		p.status, p.variant = http.StatusRequestEntityTooLarge, "PayloadTooLarge"
		p.detail = fmt.Sprintf("request body is larger than %d bytes; send less, or raise server.max_body in coffer-kbs.toml", tooLarge.Limit)
	case errors.As(err, &refusal):
		p.status = http.StatusUnauthorized
		p.reason = rcar.Reason{Rule: refusal.Rule, Expected: refusal.Expected, Got: refusal.Got, NextStep: refusal.Next}
	case errdefs.IsInvalidArgument(err):
		p.status = http.StatusBadRequest
	case errdefs.IsUnauthorized(err):
		p.status = http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		p.status = http.StatusForbidden
	case errdefs.IsNotFound(err):
		p.status = http.StatusNotFound
	case errdefs.IsAlreadyExists(err):
		p.status = http.StatusPreconditionFailed
	case errdefs.IsNotImplemented(err):
		p.status = http.StatusBadRequest
	case errdefs.IsResourceExhausted(err):
		p.status, p.detail = http.StatusServiceUnavailable, "the service's storage is full"
		p.reason.NextStep = "have its operator make room, then try again"
	default:
		p.status, p.detail = http.StatusServiceUnavailable, "the service cannot answer now; try again, and see its log if it persists"
	}
	return p
}

// fail answers an error and logs it.
func (s *Server) fail(w http.ResponseWriter, r *request, err error) {
	p := fromClass("PluginInternalError", err)
	reason := p.reason
	reason.TraceID = r.trace
	body, err := json.Marshal(rcar.Error{Type: rcar.ErrorTypePrefix + p.variant, Detail: p.detail, Reason: &reason})
	if err != nil {
		body = []byte("{}")
	}
	level := slog.LevelInfo
	if p.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	s.log.Log(r.Context(), level, "request failed", "trace_id", r.trace, "method", r.Method, "route", routeOf(r), "status", p.status, "type", p.variant, "err", p.Error())
	h := w.Header()
	if len(p.allow) > 0 {
		h.Set("Allow", strings.Join(p.allow, ", "))
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="coffer-kbs"`)
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(p.retryAfter/time.Second)+1))
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.status)
	_, _ = w.Write(body)
}

// routeOf is the first step of the path; the rest may name a secret.
func routeOf(r *request) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, prefix), "/")
	if len(name) > 32 {
		name = name[:32]
	}
	return name
}

func writeJSON(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) //nolint:gosec // JSON with its content type, read by programs
}

func newTrace() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
