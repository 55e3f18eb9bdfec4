// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Loader reads policy.json by URI and reads it again when it is old. It is
// safe for concurrent use, and keeps the document in memory only.
type Loader struct{ parsed[Policy] }

// NewLoader reads nothing yet. uri is kbs:///repository/type/tag,
// kbs+plugin://…, file:///path or an absolute path; resources may be nil where
// it is a file. Errors are InvalidArgument.
func NewLoader(uri string, resources ResourceGetter, refresh Refresh) (*Loader, error) {
	if err := checkURI(uri); err != nil {
		return nil, fmt.Errorf("image policy: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &Loader{parsed[Policy]{uri: uri, docs: newDocuments(resources, refresh), parse: Parse}}, nil
}

// Policy returns the policy as it is now. Where its source cannot be reached,
// the last good one is returned until Refresh.MaxStale has passed; then, and
// where the source says no or answers with a bad policy, there is only an
// error.
func (l *Loader) Policy(ctx context.Context) (*Policy, error) { return l.load(ctx) }

// LookasideLoader is a Loader of registries.d YAML.
type LookasideLoader struct{ parsed[Lookaside] }

// NewLookasideLoader is NewLoader for registries.d YAML.
func NewLookasideLoader(uri string, resources ResourceGetter, refresh Refresh) (*LookasideLoader, error) {
	if err := checkURI(uri); err != nil {
		return nil, fmt.Errorf("signature stores: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &LookasideLoader{parsed[Lookaside]{uri: uri, docs: newDocuments(resources, refresh), parse: ParseLookaside}}, nil
}

// Lookaside returns the configuration as it is now, as Loader.Policy does.
func (l *LookasideLoader) Lookaside(ctx context.Context) (*Lookaside, error) { return l.load(ctx) }

// parsed is a document by URI and what it was parsed to.
type parsed[T any] struct {
	uri   string
	docs  *documents
	parse func([]byte) (*T, error)

	mu   sync.Mutex
	from []byte // what value was parsed from; guarded by mu
	last *T     // guarded by mu
}

func (p *parsed[T]) load(ctx context.Context) (*T, error) {
	b, err := p.docs.get(ctx, p.uri)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || string(p.from) != string(b) {
		p.last = nil
		if p.last, err = p.parse(b); err != nil {
			return nil, fmt.Errorf("%s: %w", p.uri, err)
		}
		p.from = b
	}
	return p.last, nil
}
