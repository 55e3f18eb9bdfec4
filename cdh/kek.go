// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cdh

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// kekCache keeps key-encryption keys for a while and fetches each once for all
// who wait for it. A fetch belongs to no single caller: it ends early only when
// nobody waits any more.
type kekCache struct {
	fetch    func(ctx context.Context, uri string) ([]byte, error)
	lifetime time.Duration
	fetches  sync.WaitGroup

	mu      sync.Mutex // guards closed, entries and the fields of each entry
	closed  bool
	entries map[string]*kekEntry
}

// kekEntry is one fetch and its result.
type kekEntry struct {
	uri     string
	done    chan struct{} // closed when kek and err are set
	cancel  context.CancelFunc
	waiters int
	kek     []byte // nil once cleared
	err     error
	expiry  *time.Timer
}

// kek is a copy of a cached key, for the caller to clear.
type kek struct {
	bytes  []byte
	from   *kekEntry
	cached bool // it was there before the call
}

func newKEKCache(fetch func(context.Context, string) ([]byte, error), lifetime time.Duration) *kekCache {
	return &kekCache{fetch: fetch, lifetime: lifetime, entries: make(map[string]*kekEntry)}
}

// get returns the key that uri names. It gives up when ctx ends; the fetch goes
// on for the others.
func (c *kekCache) get(ctx context.Context, uri string) (kek, error) {
	if err := ctx.Err(); err != nil {
		return kek{}, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return kek{}, fmt.Errorf("%w: the data hub is shutting down", errdefs.ErrUnavailable)
	}
	e := c.entries[uri]
	if e == nil {
		e = c.startLocked(ctx, uri)
	}
	cached := e.kek != nil
	e.waiters++
	c.mu.Unlock()

	select {
	case <-e.done:
	case <-ctx.Done():
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	e.waiters--
	defer c.releaseLocked(e)
	select {
	case <-e.done:
	default:
		return kek{}, ctx.Err()
	}
	if e.err != nil {
		return kek{}, e.err
	}
	return kek{bytes: slices.Clone(e.kek), from: e, cached: cached}, nil
}

// startLocked begins the fetch of uri. It keeps ctx's values, not its end.
func (c *kekCache) startLocked(ctx context.Context, uri string) *kekEntry {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e := &kekEntry{uri: uri, done: make(chan struct{}), cancel: cancel}
	c.entries[uri] = e
	c.fetches.Go(func() {
		defer cancel()
		key, err := c.fetch(ctx, uri)

		c.mu.Lock()
		defer c.mu.Unlock()
		e.kek, e.err = key, err
		close(e.done)
		switch {
		case err != nil:
			c.dropLocked(e)
		case c.entries[uri] == e:
			e.expiry = time.AfterFunc(c.lifetime, func() { c.drop(e) })
		default: // given up meanwhile
			c.releaseLocked(e)
		}
	})
	return e
}

// drop forgets e; the next get fetches again.
func (c *kekCache) drop(e *kekEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(e)
}

func (c *kekCache) dropLocked(e *kekEntry) {
	if c.entries[e.uri] == e {
		delete(c.entries, e.uri)
	}
	if e.expiry != nil {
		e.expiry.Stop()
	}
	c.releaseLocked(e)
}

// releaseLocked ends the fetch and clears the key of an entry that nobody waits
// for and that is not, or not yet, worth keeping.
func (c *kekCache) releaseLocked(e *kekEntry) {
	if e.waiters > 0 {
		return
	}
	select {
	case <-e.done:
	default:
		e.cancel()
		if c.entries[e.uri] == e {
			delete(c.entries, e.uri)
		}
		return
	}
	if c.entries[e.uri] != e {
		clear(e.kek)
		e.kek = nil
	}
}

func (c *kekCache) close() {
	c.mu.Lock()
	c.closed = true
	for _, e := range c.entries {
		e.cancel()
		c.dropLocked(e)
	}
	c.mu.Unlock()
	c.fetches.Wait()
}
