// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package server is the HTTP API of a Key Broker Service: the RCAR handshake,
// the release of resources to attested guests, and the administration of
// resources, policies and reference values. Every request is hostile until
// its token is verified. A denial says which rule denied, what it expected,
// what it got and what to do next, to those who hold a valid token.
package server

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coffer-cc/coffer/kbs/appraisal"
	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rvps"
	"github.com/coffer-cc/coffer/kbs/token"
)

// Storage keeps resources; see package storage for the contract.
type Storage interface {
	Get(ctx context.Context, namespace, key string) ([]byte, error)
	Put(ctx context.Context, namespace, key string, value []byte) error
	PutNew(ctx context.Context, namespace, key string, value []byte) error
	Delete(ctx context.Context, namespace, key string) error
	List(ctx context.Context, namespace string) ([]string, error)
}

// Parts are what a Server is made of; all are required.
type Parts struct {
	Appraiser       *appraisal.Service
	Tokens          *token.Issuer
	Policies        *policy.Library
	ReferenceValues *rvps.Service
	Storage         Storage
	// AdminKeys verify administrators' tokens. Without one, every
	// administrative call is refused.
	AdminKeys []ed25519.PublicKey
}

// Options tune a Server. The zero value is safe.
type Options struct {
	// SessionLifetime is how long a handshake and its cookie last; 0 is 5
	// minutes.
	SessionLifetime time.Duration
	// MaxSessions bounds the sessions kept; 0 is 16384. Beyond it the oldest
	// one without a token gives way; where all have one, further handshakes
	// are answered 429 until one expires.
	MaxSessions int
	// MaxBody bounds request bodies, in bytes; 0 is 2 MiB.
	MaxBody int64
	// SecureCookie marks the session cookie for TLS only.
	SecureCookie bool
	// Logger gets requests that failed and, with the attribute audit=true,
	// each administrative act and each release or denial of a resource. nil
	// discards all of it.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Server implements http.Handler. It starts no goroutine.
type Server struct {
	parts    Parts
	opts     Options
	log      *slog.Logger
	sessions *sessions
	metrics  *metrics
	scrape   http.Handler
	routes   map[string]map[string]handler
	jwks     []byte
}

// handler serves one request and returns what went wrong, to be answered as
// an error.
type handler func(w http.ResponseWriter, r *request) error

// request is one HTTP request on its way.
type request struct {
	*http.Request
	// rest is the path after the route's name, escaped as it was sent: what
	// a proxy on the way saw is what is served.
	rest  string
	trace string
}

// shown is the rest of the path for the log.
func (r *request) shown() string { return fmt.Sprintf("%.256s", r.rest) }

// whole serves only the route's name alone.
func whole(next handler) handler {
	return func(w http.ResponseWriter, r *request) error {
		if r.rest != "" {
			return &problem{status: http.StatusNotFound, variant: "InvalidRequestPath", detail: "nothing may follow the route's name"}
		}
		return next(w, r)
	}
}

// New returns a Server.
func New(p Parts, o Options) (*Server, error) {
	if p.Appraiser == nil || p.Tokens == nil || p.Policies == nil || p.ReferenceValues == nil || p.Storage == nil {
		return nil, errors.New("server: a part is missing")
	}
	if o.SessionLifetime <= 0 {
		o.SessionLifetime = 5 * time.Minute
	}
	if o.MaxSessions <= 0 {
		o.MaxSessions = 16384
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 2 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	jwks, err := p.Tokens.JWKS()
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	s := &Server{
		parts: p, opts: o, log: o.Logger, jwks: jwks,
		sessions: newSessions(o.SessionLifetime, o.MaxSessions, o.Now),
		metrics:  newMetrics(registry),
		scrape:   promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}
	s.routes = s.table()
	return s, nil
}

// prefix is where the versioned API lives.
const prefix = "/kbs/v0/"

// table maps the first step of the path and the method to a handler.
func (s *Server) table() map[string]map[string]handler {
	return map[string]map[string]handler{
		"auth":   {http.MethodPost: whole(s.auth)},
		"attest": {http.MethodPost: whole(s.attest)},
		"resource": {
			http.MethodGet:    s.getResource,
			http.MethodPut:    s.admin("resource.put", s.putResource),
			http.MethodPost:   s.admin("resource.put", s.putResource),
			http.MethodDelete: s.admin("resource.delete", s.deleteResource),
		},
		"resource-policy": {
			http.MethodGet:  s.admin("resource-policy.get", s.getResourcePolicy),
			http.MethodPost: whole(s.admin("resource-policy.set", s.setResourcePolicy)),
		},
		"attestation-policy": {
			http.MethodGet:  s.admin("attestation-policy.get", s.getAttestationPolicy),
			http.MethodPost: whole(s.admin("attestation-policy.set", s.setAttestationPolicy)),
		},
		"reference-value": {
			http.MethodGet:  s.admin("reference-value.get", s.getReferenceValue),
			http.MethodPost: whole(s.admin("reference-value.set", s.setReferenceValues)),
		},
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz":
		s.plain(w, r, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
		return
	case "/metrics":
		s.plain(w, r, s.scrape.ServeHTTP)
		return
	case "/.well-known/jwks.json":
		s.plain(w, r, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.jwks) })
		return
	}
	req := &request{Request: r, trace: newTrace()}
	r.Body = http.MaxBytesReader(w, r.Body, s.opts.MaxBody)
	defer s.recover(w, req)
	if err := s.route(w, req); err != nil {
		s.fail(w, req, err)
	}
}

// plain serves what needs no API version and no authentication.
func (s *Server) plain(w http.ResponseWriter, r *http.Request, f http.HandlerFunc) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.fail(w, &request{Request: r, trace: newTrace()}, methodNotAllowed(http.MethodGet))
		return
	}
	f(w, r)
}

func (s *Server) route(w http.ResponseWriter, r *request) error {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), prefix)
	if !ok {
		return &problem{
			status: http.StatusNotFound, variant: "InvalidRequestPath",
			detail: "no such path; the API is under " + prefix,
		}
	}
	name, rest, _ := strings.Cut(path, "/")
	methods, ok := s.routes[name]
	if !ok {
		return &problem{
			status: http.StatusNotFound, variant: "PluginNotFound",
			detail: "no plugin of that name; there is resource",
		}
	}
	h, ok := methods[r.Method]
	if !ok {
		return methodNotAllowed(methodsOf(methods)...)
	}
	r.rest = rest
	return h(w, r)
}

// recover turns a panic into an answer, so that one bad request is one
// failed request.
func (s *Server) recover(w http.ResponseWriter, r *request) {
	v := recover()
	if v == nil {
		return
	}
	s.log.ErrorContext(r.Context(), "panic", "trace_id", r.trace, "route", routeOf(r), "panic", v, "stack", string(debug.Stack()))
	s.fail(w, r, &problem{status: http.StatusServiceUnavailable, variant: "PluginInternalError", detail: "internal error; see the service's log"})
}
