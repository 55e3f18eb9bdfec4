// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package kbstest runs a Key Broker Service inside of a test: the real
// handlers, policies and storage of package server behind a real listener.
package kbstest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/kbs/appraisal"
	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/resource"
	"github.com/coffer-cc/coffer/kbs/rvps"
	"github.com/coffer-cc/coffer/kbs/server"
	"github.com/coffer-cc/coffer/kbs/storage"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
	"github.com/coffer-cc/coffer/kbs/token"
	"github.com/coffer-cc/coffer/kbs/verifier"
	"github.com/coffer-cc/coffer/kbs/verifier/sample"
	"github.com/coffer-cc/coffer/kbs/verifier/tdx"
)

// Options tune a Server. The zero value refuses sample evidence.
type Options struct {
	// Sample takes sample evidence and registers the reference values that
	// affirm it.
	Sample bool
	// NoReferenceValues leaves the reference values out, so that the default
	// resource policy denies.
	NoReferenceValues bool
	// TLS serves HTTPS with a certificate that CA vouches for.
	TLS bool
	// Dir keeps the storage; "" is a folder of the test. Two Servers one
	// after the other on one Dir are a restart.
	Dir string
	// TokenLifetime, SessionLifetime, MaxSessions and MaxBody are as in
	// token.Options and server.Options.
	TokenLifetime, SessionLifetime time.Duration
	MaxSessions                    int
	MaxBody                        int64
	// Logger and Now are as in server.Options.
	Logger *slog.Logger
	Now    func() time.Time
}

// Server is a running service. It is closed at the end of the test.
type Server struct {
	// URL is where it listens; it stays the same after ComeBack.
	URL string
	// AdminToken administers it, for an hour.
	AdminToken string
	// CA is the certificate to trust, in PEM, where Options.TLS is set.
	CA []byte
	// JWKS is the key set of the tokens.
	JWKS []byte

	t       testing.TB
	opts    Options
	store   *bolt.Store
	library *policy.Library
	refs    *rvps.Service
	handler http.Handler
	address string

	mu        sync.Mutex
	http      *httptest.Server
	counts    map[string]int
	intercept func(http.ResponseWriter, *http.Request) bool
}

// New starts a Server.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s := &Server{t: t, opts: o, counts: map[string]int{}}
	s.build()
	if o.Sample && !o.NoReferenceValues {
		s.SetReferenceValues(sample.ReferenceValues())
	}
	s.start("127.0.0.1:0")
	s.URL = s.http.URL
	s.address = s.http.Listener.Addr().String()
	t.Cleanup(s.Close)
	return s
}

func (s *Server) build() {
	s.t.Helper()
	ok := func(err error) {
		if err != nil {
			s.t.Helper()
			s.t.Fatal(err)
		}
	}
	var err error
	s.store, err = bolt.Open(filepath.Join(s.opts.Dir, "kbs.db"))
	ok(err)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	ok(err)
	now := s.opts.Now
	if now == nil {
		now = time.Now
	}
	s.AdminToken, err = server.IssueAdminToken(private, now(), time.Hour)
	ok(err)
	key, err := token.LoadKey(s.t.Context(), s.store)
	ok(err)
	issuer, err := token.NewIssuer(key, token.Options{Lifetime: s.opts.TokenLifetime, Sample: s.opts.Sample, Now: now})
	ok(err)
	s.JWKS, err = issuer.JWKS()
	ok(err)
	verifiers := verifier.Set{"tdx": tdx.New(tdx.Options{})}
	if s.opts.Sample {
		verifiers["sample"] = sample.Verifier{}
	}
	s.refs = rvps.New(s.store, now)
	s.library = policy.NewLibrary(policy.NewEngine(s.refs, policy.Options{Logger: s.opts.Logger}), s.store)
	s.handler, err = server.New(server.Parts{
		Appraiser: appraisal.New(verifiers, s.library, appraisal.Options{Logger: s.opts.Logger}),
		Tokens:    issuer, Policies: s.library, ReferenceValues: s.refs, Storage: s.store,
		AdminKeys: []ed25519.PublicKey{public},
	}, server.Options{
		SessionLifetime: s.opts.SessionLifetime, MaxSessions: s.opts.MaxSessions, MaxBody: s.opts.MaxBody,
		SecureCookie: s.opts.TLS, Logger: s.opts.Logger, Now: s.opts.Now,
	})
	ok(err)
}

func (s *Server) start(address string) {
	s.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(s.t.Context(), "tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	h := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	_ = h.Listener.Close()
	h.Listener = l
	if s.opts.TLS {
		h.StartTLS()
		s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	} else {
		h.Start()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.http = h
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	route, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/kbs/v0/"), "/")
	s.mu.Lock()
	s.counts[route]++
	intercept := s.intercept
	s.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	s.handler.ServeHTTP(w, r)
}

// Close stops the Server and closes its storage. It may be called twice.
func (s *Server) Close() {
	s.GoAway()
	_ = s.store.Close()
}

// GoAway closes the listener and every connection: nobody answers any more.
// What the Server knows is kept.
func (s *Server) GoAway() {
	s.mu.Lock()
	h := s.http
	s.http = nil
	s.mu.Unlock()
	if h != nil {
		h.CloseClientConnections()
		h.Close()
	}
}

// ComeBack listens again, where it listened before.
func (s *Server) ComeBack() {
	s.t.Helper()
	s.start(s.address)
}

// CloseStorage closes the storage under the running Server, which then
// answers 503.
func (s *Server) CloseStorage() { _ = s.store.Close() }

// Intercept lets f answer requests in place of the Server; where it returns
// false it must not have answered. nil ends it.
func (s *Server) Intercept(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = f
}

// Handshakes is how many attestations were sent.
func (s *Server) Handshakes() int { return s.Count("attest") }

// Count is how many requests there were for a route: auth, attest, resource,
// resource-policy, attestation-policy or reference-value.
func (s *Server) Count(route string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[route]
}

// Put stores a resource under repository/type/tag.
func (s *Server) Put(id string, data []byte) {
	s.t.Helper()
	if _, err := resource.ParseID(id); err != nil {
		s.t.Fatal(err)
	}
	if err := s.store.Put(s.t.Context(), storage.Resources, id, data); err != nil {
		s.t.Fatal(err)
	}
}

// Get returns a resource as it is stored, or nil.
func (s *Server) Get(id string) []byte {
	b, err := s.store.Get(s.t.Context(), storage.Resources, id)
	if err != nil {
		return nil
	}
	return b
}

// SetPolicy sets the resource policy.
func (s *Server) SetPolicy(rego string) {
	s.t.Helper()
	if _, err := s.library.SetResource(s.t.Context(), rego); err != nil {
		s.t.Fatal(err)
	}
}

// DenyAll sets a resource policy that denies everything.
func (s *Server) DenyAll() {
	s.t.Helper()
	s.SetPolicy("package policy\n\ndefault allow := false\n")
}

// AllowAll sets a resource policy that releases everything to anyone with a
// token.
func (s *Server) AllowAll() {
	s.t.Helper()
	s.SetPolicy("package policy\n\nallow := true\n")
}

// SetAttestationPolicy sets an attestation policy, such as default_cpu.
func (s *Server) SetAttestationPolicy(id, rego string) {
	s.t.Helper()
	if _, err := s.library.SetAttestation(s.t.Context(), id, rego); err != nil {
		s.t.Fatal(err)
	}
}

// SetReferenceValues registers reference values.
func (s *Server) SetReferenceValues(values map[string]any) {
	s.t.Helper()
	if _, err := s.refs.Set(s.t.Context(), values); err != nil {
		s.t.Fatal(err)
	}
}
