// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
)

// Login is what a registry asks for; with Bearer through a token server, as
// public registries do, else by HTTP basic authentication.
type Login struct {
	User, Password string
	Bearer         bool
}

// Registry is an OCI registry in memory on a loopback port. It is safe for
// concurrent use.
type Registry struct {
	host  string
	inner http.Handler
	tls   bool

	mu        sync.Mutex
	server    *httptest.Server
	login     *Login
	replaced  map[digest.Digest][]byte
	documents map[string]document // instead of manifests, by digest or tag
	faults    map[string][]*Fault // by digest, tag, tokenName or "*"
	requests  map[string][]*Request
	began     map[string]chan struct{} // closed at the first GET
	busy      int                      // GETs that have not ended
	idle      *sync.Cond               // on mu, told when busy is 0
}

// Request is one GET of a manifest or blob. Status and Served are 0 until it
// has ended.
type Request struct {
	Range         string // the header, empty for the whole
	Authorization string // the header, empty without a login
	Status        int
	Served        int64 // body bytes written
}

type document struct {
	mediaType string
	body      []byte
}

// New starts a registry that speaks plain HTTP; it ends with the test.
func New(t testing.TB) *Registry { return start(t, false) }

// NewTLS starts one that speaks HTTPS with a certificate only CA trusts.
func NewTLS(t testing.TB) *Registry { return start(t, true) }

// NewMirror starts one on another port that has what r has, and faults of its
// own. It speaks plain HTTP.
func NewMirror(t testing.TB, r *Registry) *Registry {
	t.Helper()
	m := start(t, false)
	m.inner = r.inner
	return m
}

func start(t testing.TB, tls bool) *Registry {
	t.Helper()
	r := &Registry{
		inner:     ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))),
		tls:       tls,
		replaced:  make(map[digest.Digest][]byte),
		documents: make(map[string]document),
		faults:    make(map[string][]*Fault),
		requests:  make(map[string][]*Request),
		began:     make(map[string]chan struct{}),
	}
	r.idle = sync.NewCond(&r.mu)
	r.listen(t, "127.0.0.1:0")
	r.host = r.server.Listener.Addr().String()
	t.Cleanup(r.Away)
	return r
}

func (r *Registry) listen(t testing.TB, addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("imagetest: %v", err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if r.tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server = server
}

// Host is host:port, the registry part of references.
func (r *Registry) Host() string { return r.host }

// URL is the base URL.
func (r *Registry) URL() string {
	if r.tls {
		return "https://" + r.host
	}
	return "http://" + r.host
}

// CA is the PEM certificate to trust; nil for a registry without TLS.
func (r *Registry) CA() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tls || r.server == nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
}

// RequireLogin makes every later request need l; nil lets everybody in again.
func (r *Registry) RequireLogin(l *Login) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.login = l
}

// Away stops the registry: connections are cut, new ones refused.
func (r *Registry) Away() {
	r.mu.Lock()
	server := r.server
	r.server = nil
	r.mu.Unlock()
	if server != nil {
		server.CloseClientConnections()
		server.Close()
	}
}

// Back starts it again at the same address, with all it had.
func (r *Registry) Back(t testing.TB) {
	t.Helper()
	r.listen(t, r.host)
}

// Requests lists the GETs of a blob or manifest so far, by digest or tag, or
// those of the token server as "token".
func (r *Registry) Requests(name string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Request, len(r.requests[name]))
	for i, entry := range r.requests[name] {
		list[i] = *entry
	}
	return list
}

// Settle waits until all GETs so far have ended, so that Requests has their
// outcome.
func (r *Registry) Settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy > 0 {
		r.idle.Wait()
	}
}

// Began is closed when the first GET of this digest or tag has come.
func (r *Registry) Began(name string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.beganLocked(name)
}

func (r *Registry) beganLocked(name string) chan struct{} {
	c, ok := r.began[name]
	if !ok {
		c = make(chan struct{})
		r.began[name] = c
	}
	return c
}

// Blob is the content now served for a digest, nil if there is none.
func (r *Registry) Blob(repository string, d digest.Digest) []byte {
	r.mu.Lock()
	content, ok := r.replaced[d]
	r.mu.Unlock()
	if ok {
		return content
	}
	rec := httptest.NewRecorder()
	r.inner.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v2/"+repository+"/blobs/"+d.String(), nil))
	if rec.Code != http.StatusOK {
		return nil
	}
	return rec.Body.Bytes()
}

// Replace serves other bytes for a digest from now on: what edit makes of a
// copy of the present ones. A nil edit restores the true ones.
func (r *Registry) Replace(repository string, d digest.Digest, edit func([]byte) []byte) {
	if edit == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.replaced, d)
		return
	}
	content := edit(bytes.Clone(r.Blob(repository, d)))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replaced[d] = content
}

// Serve answers GETs of a manifest, by digest or tag, with body from now on,
// whatever its digest is.
func (r *Registry) Serve(name, mediaType string, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.documents[name] = document{mediaType, body}
}

// put stores a blob or manifest without going through the network.
func (r *Registry) put(t testing.TB, method, path, contentType string, body []byte) {
	t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	rec := httptest.NewRecorder()
	r.inner.ServeHTTP(rec, req)
	if rec.Code >= http.StatusMultipleChoices {
		t.Fatalf("imagetest: %s %s: %d %s", method, path, rec.Code, strings.TrimSpace(rec.Body.String()))
	}
}
