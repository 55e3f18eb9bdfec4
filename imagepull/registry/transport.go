// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpproxy"
)

const (
	connectTimeout = 10 * time.Second
	idleTimeout    = 60 * time.Second
	idlePerHost    = 16
	maxHeader      = 256 << 10
	// smallStalls is how many stall timeouts an answer that is small, which all
	// but the blobs are, may take: bytes that come one by one are no stall.
	smallStalls = 10
)

// Proxy says which requests go through which proxy. The zero value is none.
type Proxy struct {
	// HTTP and HTTPS are the URLs of the proxies for requests of these schemes,
	// http:// or https://, with user and password if they want them; empty is
	// none. HTTPS is tunnelled with CONNECT. Loopback is never asked through a
	// proxy.
	HTTP, HTTPS string
	// NoProxy lists what is asked directly, separated by commas: host names
	// (with all their subdomains), .domains, addresses and CIDR blocks, each
	// with an optional port; "*" is all.
	NoProxy string
	// FromEnvironment fills what is empty from HTTP_PROXY, HTTPS_PROXY and
	// NO_PROXY, in upper or lower case, when the client is made.
	FromEnvironment bool
}

// proxies are checked proxies.
type proxies struct {
	choose func(*http.Request) (*url.URL, error) // nil where there is none
	tls    []string                              // host:port of those that are spoken to over TLS
}

func (p Proxy) check() (proxies, error) {
	conf := httpproxy.Config{HTTPProxy: p.HTTP, HTTPSProxy: p.HTTPS, NoProxy: p.NoProxy}
	if p.FromEnvironment {
		env := httpproxy.FromEnvironment()
		conf.CGI = env.CGI
		for _, f := range []struct{ field, value *string }{
			{&conf.HTTPProxy, &env.HTTPProxy}, {&conf.HTTPSProxy, &env.HTTPSProxy}, {&conf.NoProxy, &env.NoProxy},
		} {
			if *f.field == "" {
				*f.field = *f.value
			}
		}
	}
	var out proxies
	for _, proxy := range []struct{ name, url string }{{"http", conf.HTTPProxy}, {"https", conf.HTTPSProxy}} {
		if proxy.url == "" {
			continue
		}
		u, err := url.Parse(proxy.url) // its error would show the password
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return out, fmt.Errorf("registry proxy for %s: not http://[user:password@]host:port: %w", proxy.name, errdefs.ErrInvalidArgument)
		}
		if u.Scheme == "https" {
			out.tls = append(out.tls, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
		}
	}
	if conf.HTTPProxy != "" || conf.HTTPSProxy != "" {
		choose := conf.ProxyFunc()
		out.choose = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
	}
	return out, nil
}

// unverified is the context key of the host, of an insecure endpoint, whose
// certificate is not verified.
type unverified struct{}

// router sends each request over the transport of its host, so that a client
// certificate is shown, and a certificate authority believed, only there. It
// ends requests that stall, at any stage.
type router struct {
	common hostTransports
	hosts  map[string]hostTransports
	stall  time.Duration
}

type hostTransports struct{ verified, unverified *http.Transport }

func (t hostTransports) closeIdle() {
	t.verified.CloseIdleConnections()
	t.unverified.CloseIdleConnections()
}

func newRouter(opts Options, stall time.Duration) (*router, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if len(opts.CAs) > 0 && !pool.AppendCertsFromPEM(opts.CAs) {
		return nil, fmt.Errorf("registry ca_files: no PEM certificate in them: %w", errdefs.ErrInvalidArgument)
	}
	proxy, err := opts.Proxy.check()
	if err != nil {
		return nil, err
	}
	base := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	pair := func(config *tls.Config) hostTransports {
		unverified := config.Clone()
		unverified.InsecureSkipVerify = true
		return hostTransports{newTransport(proxy, base, config, stall), newTransport(proxy, base, unverified, stall)}
	}
	r := &router{common: pair(base), hosts: make(map[string]hostTransports, len(opts.TLS)), stall: stall}
	for host, t := range opts.TLS {
		config, err := t.config(base)
		if err != nil {
			return nil, fmt.Errorf("registry TLS of %s: %w: %w", host, err, errdefs.ErrInvalidArgument)
		}
		served := endpoint{registry: strings.ToLower(host)}.host()
		r.hosts[strings.TrimSuffix(served, ":443")] = pair(config)
	}
	return r, nil
}

// newTransport uses config for registries and token servers, and base for
// proxies: they get no registry's client certificate, and theirs are verified
// also where the registry's is not.
func newTransport(proxy proxies, base, config *tls.Config, stall time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: min(connectTimeout, stall), KeepAlive: 30 * time.Second}
	t := &http.Transport{
		Proxy:               proxy.choose,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: stall,
		IdleConnTimeout:     idleTimeout,
		// The caller bounds how many are in use: a limit here could make one
		// layer wait for another that waits for it.
		MaxIdleConnsPerHost: idlePerHost,
		// Blobs are compressed already, and their bytes are what is hashed.
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
		// One TCP connection per layer: HTTP/2 would put all on one.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		OnProxyConnectResponse: func(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return &proxyError{proxy: proxy.Host, status: resp.StatusCode}
			}
			return nil
		},
	}
	if len(proxy.tls) > 0 {
		t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, stall)
			defer cancel()
			c := config
			if slices.Contains(proxy.tls, address) {
				c = base
			}
			return (&tls.Dialer{NetDialer: dialer, Config: c}).DialContext(ctx, network, address)
		}
	}
	return t
}

func (r *router) transport(req *http.Request) *http.Transport {
	t, ok := r.hosts[strings.TrimSuffix(strings.ToLower(req.URL.Host), ":443")]
	if !ok {
		t = r.common
	}
	if host, _ := req.Context().Value(unverified{}).(string); host == req.URL.Host {
		return t.unverified
	}
	return t.verified
}

// RoundTrip is http.RoundTripper's.
func (r *router) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(r.stall, func() { cancel(errStalled) })
	resp, err := r.transport(req).RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = fmt.Errorf("%w for %s", errStalled, r.stall)
		}
		cancel(nil)
		return nil, err
	}
	body := &stallReader{ctx: ctx, cancel: cancel, body: resp.Body, after: r.stall, timer: timer}
	if trace, ok := ctx.Value(traceKey{}).(*answerTrace); ok {
		trace.mu.Lock()
		trace.header = resp.Header.Get("Retry-After")
		trace.mu.Unlock()
		if resp.StatusCode >= http.StatusBadRequest || !trace.isOfBlob(req) {
			body.until = time.Now().Add(smallStalls * r.stall)
		}
	}
	resp.Body = body
	return resp, nil
}

func (r *router) closeIdle() {
	r.common.closeIdle()
	for _, t := range r.hosts {
		t.closeIdle()
	}
}

// stallReader ends a body for which no byte came in time. Only the time spent
// inside Read counts, so a slow consumer is no stall.
type stallReader struct {
	ctx    context.Context //nolint:containedctx // the request's own, to tell why it ended
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	after  time.Duration
	timer  *time.Timer
	until  time.Time // when all must be here; zero for never
}

func (s *stallReader) Read(p []byte) (int, error) {
	if !s.until.IsZero() && time.Now().After(s.until) {
		return 0, fmt.Errorf("%w: not whole after %s", errSlow, smallStalls*s.after)
	}
	s.timer.Reset(s.after)
	n, err := s.body.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF && errors.Is(context.Cause(s.ctx), errStalled) { //nolint:errorlint // the body's own EOF, by contract bare
		err = fmt.Errorf("%w for %s", errStalled, s.after)
	}
	return n, err
}

// Close lets the connection go; it does not wait for the rest of the body.
func (s *stallReader) Close() error {
	s.timer.Stop()
	s.cancel(nil)
	return s.body.Close()
}
