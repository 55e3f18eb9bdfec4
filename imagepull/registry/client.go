// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	connectTimeout = 10 * time.Second
	tlsTimeout     = 10 * time.Second
	headerTimeout  = 30 * time.Second
	idleTimeout    = 60 * time.Second
	defaultStall   = 60 * time.Second
	idlePerHost    = 16
)

// Options of a Client. The zero value reads public registries over HTTPS.
type Options struct {
	// Insecure lists the registries (host or host:port, exactly as references
	// name them) that are spoken to over plain HTTP. What they serve is still
	// checked against the manifest digest.
	Insecure []string
	// CAs is PEM of authorities trusted beside the system's; empty adds none.
	CAs []byte
	// Credentials are the logins; nil pulls anonymously.
	Credentials *Credentials
	// Proxy chooses the proxy of a request; nil uses none.
	Proxy func(*http.Request) (*url.URL, error)
	// StallTimeout ends a request for which no byte came for so long; 0 means
	// 60 s. There is no limit on the whole.
	StallTimeout time.Duration
	// Platform chooses from an index; empty fields mean linux and the
	// architecture this program was built for.
	Platform ocispec.Platform
	// UserAgent is sent with each request; empty means "coffer".
	UserAgent string
}

// Client reads from any number of registries. It is safe for concurrent use;
// Close lets its idle connections go.
type Client struct {
	http      *http.Client
	transport *http.Transport
	insecure  map[string]bool
	creds     *Credentials
	platform  ocispec.Platform
	stall     time.Duration
	header    http.Header

	mu    sync.Mutex
	repos map[string]*auth.Client // by Reference.Name; guarded by mu
}

// NewClient checks opts; it opens no connection. Errors are InvalidArgument.
func NewClient(opts Options) (*Client, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if len(opts.CAs) > 0 && !pool.AppendCertsFromPEM(opts.CAs) {
		return nil, fmt.Errorf("registry ca_files: no PEM certificate in them: %w", errdefs.ErrInvalidArgument)
	}
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
	transport := &http.Transport{
		Proxy:                 opts.Proxy,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   tlsTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   idlePerHost,
		// Blobs are compressed already, and their bytes are what is hashed.
		DisableCompression: true,
		// One TCP connection per layer: HTTP/2 would put all on one.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	c := &Client{
		http:      &http.Client{Transport: transport},
		transport: transport,
		insecure:  make(map[string]bool, len(opts.Insecure)),
		creds:     opts.Credentials,
		platform:  opts.Platform,
		stall:     opts.StallTimeout,
		header:    http.Header{"User-Agent": {"coffer"}},
		repos:     make(map[string]*auth.Client),
	}
	for _, host := range opts.Insecure {
		c.insecure[host] = true
	}
	if c.platform.OS == "" {
		c.platform.OS = "linux"
	}
	if c.platform.Architecture == "" {
		c.platform.Architecture = runtime.GOARCH
	}
	if c.stall <= 0 {
		c.stall = defaultStall
	}
	if opts.UserAgent != "" {
		c.header.Set("User-Agent", opts.UserAgent)
	}
	return c, nil
}

// Close closes idle connections. Requests that run are not touched.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// authClient is the token-keeping client of one repository. Each has its own,
// so that a login for one path is never sent for another.
func (c *Client) authClient(ref Reference) *auth.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := ref.Name()
	a, ok := c.repos[name]
	if !ok {
		a = &auth.Client{
			Client:     c.http,
			Header:     c.header,
			Credential: c.creds.forRepository(ref),
			Cache:      auth.NewCache(),
			ClientID:   "coffer",
		}
		c.repos[name] = a
	}
	return a
}

func (c *Client) url(ref Reference, kind, what string) string {
	scheme := "https"
	if c.insecure[ref.Registry] {
		scheme = "http"
	}
	return scheme + "://" + ref.host() + "/v2/" + ref.Repository + "/" + kind + "/" + what
}
