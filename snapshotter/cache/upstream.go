// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	connectTimeout = 10 * time.Second
	maxRedirects   = 5
	maxHeader      = 64 << 10
	// renewAfter is after how many requests the client of a registry is made
	// anew, with the tokens it keeps: guests choose how many repositories they
	// are for.
	renewAfter = 1000
)

// Credential is a login of the node. The zero value is none.
type Credential struct {
	Username, Password string
	// IdentityToken buys access tokens, RegistryToken is one.
	IdentityToken, RegistryToken string
}

// String keeps the secret out of texts.
func (c Credential) String() string { return "credential (hidden)" }

// GoString is String.
func (c Credential) GoString() string { return c.String() }

// upstream reads blobs from the registries that are allowed.
type upstream struct {
	http       *http.Client
	transport  *http.Transport
	plain      map[string]bool // the registries that are allowed: whether over HTTP
	credential func(ctx context.Context, registry, repository string) (Credential, error)
	stall      time.Duration

	mu      sync.Mutex
	clients map[string]*registryClient // by registry; guarded by mu
}

// registryClient keeps the tokens of one registry.
type registryClient struct {
	client auth.Client
	uses   int
}

// plainKey is the context key of whether a request may be sent over HTTP.
type plainKey struct{}

// repositoryKey is the context key of the repository that a login is for.
type repositoryKey struct{}

func newUpstream(opts Options) *upstream {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
	u := &upstream{
		transport: &http.Transport{
			Proxy:                  opts.Proxy,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: opts.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    connectTimeout,
			IdleConnTimeout:        time.Minute,
			MaxIdleConnsPerHost:    opts.MaxDownloads,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
			// A connection per blob; HTTP/2 would put all on one.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
		plain:      make(map[string]bool, len(opts.Registries)),
		credential: opts.Credential,
		stall:      opts.StallTimeout,
		clients:    make(map[string]*registryClient),
	}
	for _, r := range opts.Registries {
		host, plain, _ := ParseRegistry(r) // Open has checked it
		u.plain[host] = plain
	}
	u.http = &http.Client{Transport: u, CheckRedirect: checkRedirect}
	return u
}

// checkRedirect lets the login of a registry go to that registry only.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errors.New("redirected too often")
	}
	if from := via[0].URL; req.URL.Host != from.Host || req.URL.Scheme != from.Scheme {
		req.Header.Del("Authorization")
	}
	req.Header.Del("Referer") // it may have another server's signed URL
	return nil
}

// RoundTrip sends a request, be it to a registry, a token server, or where one
// redirects to. The answer's body ends where nothing comes for too long.
func (u *upstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if plain, _ := req.Context().Value(plainKey{}).(bool); !plain && req.URL.Scheme != "https" {
		return nil, fmt.Errorf("it leads to %s, over %s instead of https", req.URL.Host, req.URL.Scheme)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(u.stall, func() { cancel(errStalled) })
	resp, err := u.transport.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &stallReader{ReadCloser: resp.Body, cancel: cancel, timer: timer, after: u.stall}
	return resp, nil
}

var errStalled = errors.New("it sends nothing")

// stallReader ends a body for which no byte came in time.
type stallReader struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.after)
	defer s.timer.Stop()
	return s.ReadCloser.Read(p)
}

// Close does not wait for the rest of the body.
func (s *stallReader) Close() error {
	s.timer.Stop()
	s.cancel(nil)
	return s.ReadCloser.Close()
}

// wanted is the part of a blob that is asked for.
type wanted struct {
	method string
	first  int64
	end    int64 // 0 for all
}

// answer is a blob from a registry, from the byte on that was asked for.
type answer struct {
	body io.ReadCloser
	size int64 // of the whole blob, -1 if not known
}

// open asks a registry once. Errors are *refusal.
func (u *upstream) open(ctx context.Context, s source, d digest.Digest, w wanted) (answer, error) {
	reference := oras.Reference{Registry: s.registry, Repository: s.repository}
	scheme := "https"
	if u.plain[s.registry] {
		scheme = "http"
		ctx = context.WithValue(ctx, plainKey{}, true)
	}
	ctx = context.WithValue(ctx, repositoryKey{}, s.repository)
	ctx = auth.AppendRepositoryScope(ctx, reference, auth.ActionPull)
	address := scheme + "://" + reference.Host() + "/v2/" + s.repository + "/blobs/" + d.String()
	req, err := http.NewRequestWithContext(ctx, w.method, address, nil)
	if err != nil {
		return answer{}, refuse(s, err)
	}
	if w.first > 0 || w.end > 0 {
		last := ""
		if w.end > 0 {
			last = strconv.FormatInt(w.end-1, 10)
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", w.first, last))
	}
	resp, err := u.client(s.registry).Do(req)
	if err != nil {
		return answer{}, refuse(s, err)
	}
	a, err := position(resp, w.first)
	if err != nil {
		_ = resp.Body.Close()
		return answer{}, refuse(s, err)
	}
	return a, nil
}

// position makes an answer begin at byte first.
func position(resp *http.Response, first int64) (answer, error) {
	a := answer{body: resp.Body, size: -1}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var start, last int64
		header := resp.Header.Get("Content-Range")
		if _, err := fmt.Sscanf(header, "bytes %d-%d/%d", &start, &last, &a.size); err != nil || start != first || last >= a.size {
			return a, fmt.Errorf("asked from byte %d on, answered with range %.60q", first, header)
		}
	case http.StatusOK:
		a.size = resp.ContentLength
		if _, err := io.CopyN(io.Discard, resp.Body, first); err != nil {
			return a, fmt.Errorf("blob ends before byte %d: %w", first, err)
		}
	default:
		return a, &statusError{resp.StatusCode}
	}
	return a, nil
}

// client is the one that keeps the tokens of a registry.
func (u *upstream) client(registry string) *auth.Client {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.clients[registry]
	if c == nil || c.uses >= renewAfter {
		c = &registryClient{client: auth.Client{
			Client: u.http, Header: http.Header{"User-Agent": {"coffer"}}, Cache: auth.NewCache(), ClientID: "coffer",
		}}
		c.client.Credential = func(ctx context.Context, host string) (auth.Credential, error) {
			if u.credential == nil || host != (oras.Reference{Registry: registry}).Host() {
				return auth.EmptyCredential, nil
			}
			repository, _ := ctx.Value(repositoryKey{}).(string)
			login, err := u.credential(ctx, registry, repository)
			if err != nil {
				return auth.EmptyCredential, &credentialError{err}
			}
			return auth.Credential{
				Username: login.Username, Password: login.Password,
				RefreshToken: login.IdentityToken, AccessToken: login.RegistryToken,
			}, nil
		}
		u.clients[registry] = c
	}
	c.uses++
	return &c.client
}

// credentialError says that the node's credentials cannot be read.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return "node's credentials: " + e.err.Error() }

// statusError is an answer that has no blob.
type statusError struct{ status int }

func (e *statusError) Error() string {
	return fmt.Sprintf("it answers %d %s", e.status, http.StatusText(e.status))
}

// refusal says why a registry did not send a blob.
type refusal struct {
	source    source
	temporary bool
	err       error
}

func refuse(s source, err error) *refusal {
	r := &refusal{source: s, err: err, temporary: true}
	var status *statusError
	var token *errcode.ErrorResponse
	var credential *credentialError
	var inURL *url.Error
	switch {
	case errors.As(err, &status):
		r.temporary = temporary(status.status)
	case errors.As(err, &token):
		r.temporary = temporary(token.StatusCode)
	case errors.As(err, &credential), errors.Is(err, auth.ErrBasicCredentialNotFound):
		r.temporary = false
	case errors.As(err, &inURL):
		r.err = inURL.Err // without the URL: a redirect's may be signed
	}
	return r
}

func temporary(status int) bool {
	return status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

func (r *refusal) Error() string {
	return fmt.Sprintf("registry %s, repository %s: %v", r.source.registry, r.source.repository, r.err)
}

// Unwrap gives a class to the error beside its cause.
func (r *refusal) Unwrap() []error {
	if r.temporary {
		return []error{r.err, errdefs.ErrUnavailable}
	}
	return []error{r.err, errdefs.ErrNotFound}
}
