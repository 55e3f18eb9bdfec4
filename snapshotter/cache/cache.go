// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// DefaultMaxBytes is the size limit where Options has none.
const DefaultMaxBytes = 16 << 30

// maxRemembered bounds the failures that are remembered.
const maxRemembered = 4096

// Options of a Cache. The zero value keeps blobs but may fetch none.
type Options struct {
	// Registries are those that blobs may be fetched from, host[:port] as
	// references name them ("docker.io"); with http:// before it over plain HTTP.
	// A request names its registry with the parameter ns, or means the only one.
	Registries []string
	// MaxBytes is the limit of the blobs on disk, partial ones included; 0 means
	// DefaultMaxBytes.
	MaxBytes int64
	// Credential finds the node's own login for a repository, after its registry
	// has refused a request without; nil fetches anonymously. See the package
	// about who can read with it.
	Credential func(ctx context.Context, registry, repository string) (Credential, error)
	// RootCAs are trusted for registries; nil means the system's.
	RootCAs *x509.CertPool
	// Proxy chooses a proxy, as http.Transport's does; nil is none.
	Proxy func(*http.Request) (*url.URL, error)
	// MaxDownloads is how many blobs are fetched at the same time, those passed
	// through included; 0 means 16. Others wait for QueueTimeout, 0 means 10 s,
	// and are then refused: the guest asks the registry itself.
	MaxDownloads int
	QueueTimeout time.Duration
	// StallTimeout ends a request to a registry for which nothing came for so
	// long, and one of a guest that takes nothing; 0 means 30 s.
	StallTimeout time.Duration
	// RetryDelay is waited before a download that broke off is resumed, and twice
	// as long each further time; 0 means 200 ms.
	RetryDelay time.Duration
	// Linger is how long a download goes on that nobody reads any more; 0 means
	// 30 s.
	Linger time.Duration
	// Recheck is the age after which a blob's bytes are compared with its digest
	// again, while they are sent; 0 means a day.
	Recheck time.Duration
	// Logger gets what a registry or the disk did wrong; nil discards it.
	Logger *slog.Logger
}

// Cache is an http.Handler. It is safe for concurrent use.
type Cache struct {
	opts     Options
	shelf    *shelf
	upstream *upstream
	metrics  *metrics
	log      *slog.Logger
	slots    chan struct{}
	only     string // the registry of requests that name none

	running  sync.WaitGroup // of flights
	mu       sync.Mutex     // guards what follows, and the fields of flights that say so
	flights  map[digest.Digest]*flight
	failures map[failureKey]failure
	closed   bool
}

type failureKey struct {
	source source
	digest digest.Digest
}

type failure struct {
	err   error
	until time.Time
}

// Open takes what is in the folder root, which it makes if needed and which no
// other process may use. It starts nothing and opens no connection. Errors are
// InvalidArgument for options, FailedPrecondition where the folder is in use, or
// of the file system.
func Open(root string, opts Options) (*Cache, error) {
	opts.MaxBytes = cmp.Or(opts.MaxBytes, DefaultMaxBytes)
	opts.MaxDownloads = cmp.Or(opts.MaxDownloads, 16)
	opts.QueueTimeout = cmp.Or(opts.QueueTimeout, 10*time.Second)
	opts.StallTimeout = cmp.Or(opts.StallTimeout, 30*time.Second)
	opts.RetryDelay = cmp.Or(opts.RetryDelay, 200*time.Millisecond)
	opts.Linger = cmp.Or(opts.Linger, 30*time.Second)
	opts.Recheck = cmp.Or(opts.Recheck, 24*time.Hour)
	if opts.MaxBytes < 0 || opts.MaxDownloads < 0 {
		return nil, fmt.Errorf("cache: a limit is negative: %w", errdefs.ErrInvalidArgument)
	}
	for _, r := range opts.Registries {
		if _, _, err := ParseRegistry(r); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := newMetrics()
	s, err := openShelf(root, opts.MaxBytes, m, log)
	if err != nil {
		return nil, err
	}
	c := &Cache{
		opts: opts, shelf: s, upstream: newUpstream(opts), metrics: m, log: log,
		slots:    make(chan struct{}, opts.MaxDownloads),
		flights:  make(map[digest.Digest]*flight),
		failures: make(map[failureKey]failure),
	}
	if len(c.upstream.plain) == 1 {
		for r := range c.upstream.plain {
			c.only = r
		}
	}
	return c, nil
}

// Close ends the downloads that run and closes the folder. The server must have
// stopped before.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.flights {
		f.cancel(errClosed)
	}
	c.mu.Unlock()
	c.running.Wait()
	c.upstream.transport.CloseIdleConnections()
	return c.shelf.close()
}

// ParseRegistry reads an entry of Options.Registries: [http://]host[:port].
// Errors are InvalidArgument.
func ParseRegistry(s string) (registry string, plain bool, err error) {
	registry, plain = strings.CutPrefix(s, "http://")
	registry = strings.ToLower(registry)
	if !validRegistry(registry) {
		return "", false, fmt.Errorf("registry %q is not host[:port], nor http://host[:port]: %w", s, errdefs.ErrInvalidArgument)
	}
	return registry, plain, nil
}

// found is where the bytes of a blob are: on disk, or in a flight. Neither is
// where there is no such blob and none was to be fetched.
type found struct {
	blob   blob // without digest for none
	flight *flight
	began  bool // the flight is of this request
}

// find looks for a blob, and starts a flight for one that is not there, if fetch
// says so. The caller leaves the flight. Errors have a class, or are errNotKept.
func (c *Cache) find(ctx context.Context, r blobRequest, fetch bool) (found, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return found{}, errClosed
	}
	if f := c.flights[r.digest]; f != nil {
		c.joinLocked(f)
		return found{flight: f}, nil
	}
	b, there := c.shelf.use(r.digest)
	switch {
	case there && time.Since(b.checked) < c.opts.Recheck:
		return found{blob: b}, nil
	case !there && !fetch:
		return found{}, nil
	case !there:
		key := failureKey{r.source, r.digest}
		if last, ok := c.failures[key]; ok {
			if time.Now().Before(last.until) {
				return found{}, last.err
			}
			delete(c.failures, key)
		}
	}
	f := newFlight(r, there)
	ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	c.flights[r.digest] = f
	c.joinLocked(f)
	c.running.Go(func() { c.fly(ctx, f, b) })
	return found{flight: f, began: true}, nil
}

// rememberLocked spares a registry questions that it has just answered.
func (c *Cache) rememberLocked(f *flight, err error) {
	var lasts time.Duration
	switch {
	case f.local, errors.Is(err, context.Canceled), errors.Is(err, errQueue):
		return
	case errors.Is(err, errNotKept), errdefs.IsDataLoss(err):
		lasts = time.Minute
	case errdefs.IsNotFound(err):
		lasts = 10 * time.Second
	default:
		lasts = 3 * time.Second
	}
	if len(c.failures) >= maxRemembered {
		clear(c.failures)
	}
	c.failures[failureKey{f.source, f.digest}] = failure{err, time.Now().Add(lasts)}
}

// slot waits for one of the downloads that may run; the caller calls free.
func (c *Cache) slot(ctx context.Context) (free func(), err error) {
	timer := time.NewTimer(c.opts.QueueTimeout)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timer.C:
		return nil, errQueue
	}
	c.metrics.running.Inc()
	return func() {
		c.metrics.running.Dec()
		<-c.slots
	}, nil
}
