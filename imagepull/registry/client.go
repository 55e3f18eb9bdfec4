// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

const defaultStall = 60 * time.Second

// CredentialSource finds credentials: a *login.Config or a *login.Loader.
type CredentialSource = login.Source

// Options of a Client. The zero value reads public registries over HTTPS.
type Options struct {
	// Insecure lists the registries (host or host:port, exactly as references
	// or the registries configuration name them) that are spoken to over plain
	// HTTP. What they serve is still checked against the manifest digest.
	Insecure []string
	// Config is the registries configuration: mirrors, other locations, blocked
	// names, what short names mean; nil is none. What it calls insecure is asked
	// over HTTPS without a look at the certificate, then over plain HTTP.
	Config *conf.Config
	// ConfigSource, where it is not nil, gives Config instead: it is asked by
	// each Resolve, and what it said last holds for everything else.
	ConfigSource ConfigSource
	// CAs is PEM of authorities trusted beside the system's; empty adds none.
	CAs []byte
	// TLS is by registry, host or host:port as references name it.
	TLS map[string]HostTLS
	// Credentials are the logins; nil pulls anonymously. They are asked for
	// only after a registry has refused a request without, and again when it
	// refuses one with.
	Credentials CredentialSource
	// Cache is the node's cache of blobs: http://host[:port], unix:///path or
	// vsock://CID:PORT; empty is none. It is asked first for blobs, and for
	// nothing else, without any login. What it does wrong costs a request to the
	// registry. It is not asked through a proxy.
	Cache string
	// Logger gets why the cache is left alone for a while; nil discards it.
	Logger *slog.Logger
	// Proxy is used for all registries and token servers.
	Proxy Proxy
	// StallTimeout ends a request for which no byte came for so long, be it
	// while connecting, before the header, or in the body; 0 means 60 s. There
	// is no limit on a whole blob; all else must be here after ten times as long.
	StallTimeout time.Duration
	// Platform chooses from an index; empty fields mean linux and the
	// architecture this program was built for.
	Platform ocispec.Platform
	// FindIndex makes Resolve look, where it is given a tag and the digest of a
	// platform's manifest, whether the tag is an index that has it, so that
	// Image.Index is known to the image policy. That is one more request.
	FindIndex bool
	// UserAgent is sent with each request; empty means "coffer".
	UserAgent string
}

// Client reads from any number of registries. It is safe for concurrent use;
// Close lets its idle connections go.
type Client struct {
	http      *http.Client
	router    *router
	cache     *nodeCache // nil where there is none
	log       *slog.Logger
	config    configuration
	insecure  map[string]bool
	creds     CredentialSource
	platform  ocispec.Platform
	findIndex bool
	header    http.Header

	mu      sync.Mutex // guards what follows
	auths   map[endpoint]*authState
	schemes map[string]string    // of insecure endpoints, by host
	resting map[string]time.Time // endpoints that failed, until when, by registry
	blobs   map[blobKey]*sources // of repositories with several endpoints
}

// NewClient checks opts; it opens no connection. Errors are InvalidArgument.
func NewClient(opts Options) (*Client, error) {
	stall := opts.StallTimeout
	if stall <= 0 {
		stall = defaultStall
	}
	router, err := newRouter(opts, stall)
	if err != nil {
		return nil, err
	}
	c := &Client{
		http:      &http.Client{Transport: router},
		router:    router,
		log:       opts.Logger,
		config:    configuration{source: opts.ConfigSource, fixed: opts.Config},
		insecure:  make(map[string]bool, len(opts.Insecure)),
		creds:     opts.Credentials,
		platform:  opts.Platform,
		findIndex: opts.FindIndex,
		header:    http.Header{"User-Agent": {"coffer"}},
		auths:     make(map[endpoint]*authState),
		schemes:   make(map[string]string),
		resting:   make(map[string]time.Time),
		blobs:     make(map[blobKey]*sources),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if opts.Cache != "" {
		if c.cache, err = newNodeCache(opts.Cache, stall); err != nil {
			return nil, err
		}
	}
	for _, host := range opts.Insecure {
		c.insecure[strings.ToLower(host)] = true
	}
	if c.platform.OS == "" {
		c.platform.OS = "linux"
	}
	if c.platform.Architecture == "" {
		c.platform.Architecture = runtime.GOARCH
	}
	if opts.UserAgent != "" {
		c.header.Set("User-Agent", opts.UserAgent)
	}
	return c, nil
}

// HTTP is a client for servers that stand beside registries, such as stores of
// signatures: with the same proxies, certificates and stall timeout, but without
// any registry's login.
func (c *Client) HTTP() *http.Client { return &http.Client{Transport: c.router} }

// Close closes idle connections. Requests that run are not touched.
func (c *Client) Close() {
	c.router.closeIdle()
	if c.cache != nil {
		c.cache.router.closeIdle()
	}
}
