// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	oras "oras.land/oras-go/v2/registry"
)

const (
	// restAfterFailure is how long an endpoint that could not be reached is
	// asked after the others.
	restAfterFailure = time.Minute
	longestRest      = 5 * time.Minute
	// maxRemembered bounds what is remembered of repositories and of blobs.
	maxRemembered = 4096
)

// endpoint is one place that may have a repository: the registry itself, or one
// that the registries configuration names instead.
type endpoint struct {
	registry, repository string

	insecure      bool // certificates need not verify, plain HTTP is tried
	mirror        bool
	cache         bool   // the node's: registry is its address, namespace the registry's name
	tags, digests bool   // what it may be asked for
	namespace     string // sent as parameter ns, if not empty
}

func (e endpoint) name() string { return e.registry + "/" + e.repository }

// place is what rests together after a failure.
func (e endpoint) place() string {
	if e.cache { // it may reach one registry and not another
		return e.registry + " " + e.namespace
	}
	return e.registry
}

// host is the machine that serves it.
func (e endpoint) host() string { return oras.Reference{Registry: e.registry}.Host() }

// purpose is what endpoints are wanted for.
type purpose int

const (
	forTag    purpose = iota // of a pull by tag
	forDigest                // of a pull by digest
	// forContent is what a digest names and the pull has led to: any endpoint
	// will do, those first that are meant for digests.
	forContent
	// forSignature is a tag that no user has named: any endpoint will do, those
	// first that are meant for tags.
	forSignature
)

func (p purpose) allows(e endpoint) bool {
	if p == forTag || p == forSignature {
		return e.tags
	}
	return e.digests
}

// endpoints are the places to ask for what r names, in order. There is at least
// one, or an error with a class.
func (c *Client) endpoints(r Reference, p purpose) ([]endpoint, error) {
	config, err := c.config.now()
	if err != nil {
		return nil, err
	}
	named, err := config.Endpoints(r.Name())
	if err != nil {
		return nil, err
	}
	var list, last []endpoint
	for _, n := range named {
		registry, repository, _ := strings.Cut(n.Name, "/")
		e := endpoint{
			registry: registry, repository: repository, insecure: n.Insecure, mirror: n.Mirror,
			tags: n.Tags, digests: n.Digests, namespace: n.Namespace,
		}
		switch {
		case p.allows(e):
			list = append(list, e)
		case p == forContent || p == forSignature:
			last = append(last, e)
		}
	}
	return c.byHealth(append(list, last...)), nil
}

// first moves e to the front.
func first(e endpoint, list []endpoint) []endpoint {
	out := []endpoint{e}
	for _, other := range list {
		if other != e {
			out = append(out, other)
		}
	}
	return out
}

// byHealth moves those that failed a moment ago behind the others.
func (c *Client) byHealth(list []endpoint) []endpoint {
	if len(list) < 2 {
		return list
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	rests := func(e endpoint) int {
		if c.resting[e.place()].After(now) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b endpoint) int { return rests(a) - rests(b) })
	return list
}

// note remembers whether an endpoint could be reached. The cache rests whatever it
// did wrong: only that it has not a blob is none of its faults.
func (c *Client) note(e endpoint, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var failed *Error
	switch {
	case err == nil:
		delete(c.resting, e.place())
	case errors.As(err, &failed) && (failed.Temporary || e.cache && !errdefs.IsNotFound(failed)):
		now := time.Now()
		if e.cache && !c.resting[e.place()].After(now) {
			c.log.Warn("the node's cache is left alone for a while, blobs come from the registry", "cache", e.registry, "err", failed.text)
		}
		if len(c.resting) >= maxRemembered {
			clear(c.resting)
		}
		c.resting[e.place()] = now.Add(min(max(failed.RetryAfter, restAfterFailure), longestRest))
	}
}

// each asks the endpoints one after the other until one does. A failure is that
// of all of them, without that of the cache, or the end of ctx.
func (c *Client) each(ctx context.Context, r Reference, what string, list []endpoint, ask func(endpoint, asked) error) error {
	var failed, cached []*Error
	for _, e := range list {
		err := ask(e, newAsked(r, e, what))
		if len(list) > 1 {
			c.note(e, err)
		}
		if err == nil {
			return nil
		}
		one, ok := err.(*Error) //nolint:errorlint // ask returns it bare
		if !ok || ctx.Err() != nil {
			return err
		}
		if e.cache {
			cached = append(cached, one)
			continue
		}
		failed = append(failed, one)
	}
	if failed == nil { // the others' bytes were wrong before
		failed = cached
	}
	return combine(r, what, failed)
}

// blobKey names a blob of a repository.
type blobKey struct {
	name   string
	digest digest.Digest
}

// sources is who sent bytes of a blob, and who sent wrong ones; by endpoint.
type sources struct {
	sent, wrong map[endpoint]bool
}

// sent remembers that e sends bytes of a blob, beside those who sent what is
// before offset.
func (c *Client) sent(key blobKey, e endpoint, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.blobs[key]
	if s == nil {
		if len(c.blobs) >= maxRemembered {
			clear(c.blobs)
		}
		s = &sources{sent: make(map[endpoint]bool), wrong: make(map[endpoint]bool)}
		c.blobs[key] = s
	}
	if offset == 0 {
		clear(s.sent)
	}
	s.sent[e] = true
}

// Reject says that the bytes of the blob d of the image ref, which Fetch brought,
// were not those that d names. It reports whether the next Fetch of the blob asks
// another endpoint than those that sent them, so that there is use in reading it
// once more from its start.
func (c *Client) Reject(ref string, d digest.Digest) bool {
	r, err := ParseReference(ref)
	if err != nil {
		return false
	}
	list, err := c.endpoints(r, forContent)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := blobKey{r.Name(), d}
	s := c.blobs[key]
	if s == nil || len(s.sent) == 0 {
		return false
	}
	for e := range s.sent {
		// Of several it is not known whose bytes were wrong: the registry itself
		// is asked once more, alone.
		if e.mirror || len(s.sent) == 1 {
			s.wrong[e] = true
		}
	}
	for e := range s.sent {
		if e.cache && len(s.sent) == 1 {
			c.rejectLocked(e, d)
		}
	}
	clear(s.sent)
	if slices.ContainsFunc(list, func(e endpoint) bool { return !s.wrong[e] }) {
		return true
	}
	delete(c.blobs, key) // a later pull asks all of them again
	return false
}

// rejectLocked lets a cache rest that sent wrong bytes.
func (c *Client) rejectLocked(e endpoint, d digest.Digest) {
	c.log.Warn("the node's cache sends wrong bytes: it is left alone for a while", "cache", e.registry, "blob", d)
	c.resting[e.place()] = time.Now().Add(longestRest)
}

// trusted leaves out the endpoints whose bytes of a blob were rejected.
func (c *Client) trusted(key blobKey, list []endpoint) []endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.blobs[key]
	if s == nil {
		return list
	}
	right := slices.DeleteFunc(slices.Clone(list), func(e endpoint) bool { return s.wrong[e] })
	if len(right) == 0 {
		return list
	}
	return right
}
