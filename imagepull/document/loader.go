// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package document

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Loader reads one document by URI, parses it, and reads it again when it is
// old. It is safe for concurrent use.
type Loader[T any] struct {
	what, uri string
	reader    *Reader
	parse     func([]byte) (*T, error)

	mu   sync.Mutex
	from []byte // what last was parsed from; guarded by mu
	last *T     // guarded by mu
}

// NewLoader reads nothing yet. what begins the errors about the document, as
// "image policy". uri is as in CheckURI; resources may be nil where it is a
// file. parse must not keep or change what it is given, and its errors say what
// the document is. Errors are InvalidArgument.
func NewLoader[T any](what, uri string, resources ResourceGetter, refresh Refresh, parse func([]byte) (*T, error)) (*Loader[T], error) {
	if err := CheckURI(uri); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, err, errdefs.ErrInvalidArgument)
	}
	return &Loader[T]{what: what, uri: uri, reader: NewReader(resources, refresh), parse: parse}, nil
}

// Load returns the document as it is now. Where its source cannot be reached,
// the last good one is returned until Refresh.MaxStale has passed; then, and
// where the source says no or answers with a bad document, there is only an
// error. The result is shared: it must not be changed.
func (l *Loader[T]) Load(ctx context.Context) (*T, error) {
	b, err := l.reader.Get(ctx, l.uri)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.what, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil || string(l.from) != string(b) {
		l.last = nil
		if l.last, err = l.parse(b); err != nil {
			return nil, fmt.Errorf("%s: %w", l.uri, err)
		}
		l.from = b
	}
	return l.last, nil
}
