// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// ResourceGetter gets a resource of the KBS: kbs:///repository/type/tag or
// kbs+plugin://…
type ResourceGetter interface {
	GetResource(ctx context.Context, uri string) ([]byte, error)
}

const (
	defaultRefresh  = 5 * time.Minute
	defaultMaxStale = 30 * time.Minute
)

// Refresh says how long what was read by URI stays good. It is kept in memory
// and nowhere else.
type Refresh struct {
	// Every is the age at which a document is read again, when it is next
	// needed; 0 means 5 min.
	Every time.Duration
	// MaxStale is for how long after that the last good document stands in
	// while its source cannot be reached; 0 means 30 min, less than 0 not at
	// all. A source that is reached and says no is believed at once.
	MaxStale time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// documents reads what the policy names by URI. It is safe for concurrent use;
// one read of a document serves all who wait for it.
type documents struct {
	resources       ResourceGetter // may be nil
	every, maxStale time.Duration
	now             func() time.Time

	mu    sync.Mutex
	byURI map[string]*document // guarded by mu
}

type document struct {
	turn  chan struct{} // holds one token: whose turn it is to read
	bytes []byte        // guarded by the token, like the next two
	read  time.Time     // zero if it never was
	away  error         // why the last read did not reach the source, else nil
	reads atomic.Int64  // that have ended
}

func newDocuments(resources ResourceGetter, r Refresh) *documents {
	d := &documents{resources: resources, every: r.Every, maxStale: r.MaxStale, now: r.Now, byURI: map[string]*document{}}
	if d.every <= 0 {
		d.every = defaultRefresh
	}
	if d.maxStale == 0 {
		d.maxStale = defaultMaxStale
	}
	if d.now == nil {
		d.now = time.Now
	}
	return d
}

// get returns the document, not older than the options allow. The bytes are
// shared: they must not be changed.
func (d *documents) get(ctx context.Context, uri string) ([]byte, error) {
	d.mu.Lock()
	doc, ok := d.byURI[uri]
	if !ok {
		doc = &document{turn: make(chan struct{}, 1)}
		doc.turn <- struct{}{}
		d.byURI[uri] = doc
	}
	d.mu.Unlock()
	seen := doc.reads.Load()
	select {
	case <-doc.turn:
		defer func() { doc.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	age := d.now().Sub(doc.read)
	if !doc.read.IsZero() && age < d.every {
		return doc.bytes, nil
	}
	if doc.away == nil || doc.reads.Load() == seen { // nobody has just tried for those who wait
		b, err := d.read(ctx, uri)
		doc.reads.Add(1)
		doc.away = nil
		switch {
		case err == nil:
			doc.bytes, doc.read = b, d.now()
			return b, nil
		case ctx.Err() == nil && !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err):
			doc.bytes, doc.read = nil, time.Time{} // withdrawn, or refused
			return nil, fmt.Errorf("%s: %w", uri, err)
		case ctx.Err() != nil: // only this caller's
			return doc.standIn(uri, age < d.every+d.maxStale, err)
		}
		doc.away = err
	}
	return doc.standIn(uri, age < d.every+d.maxStale, doc.away)
}

// standIn returns the last good document if there is one, and it may.
func (doc *document) standIn(uri string, may bool, err error) ([]byte, error) {
	if may && !doc.read.IsZero() {
		return doc.bytes, nil
	}
	return nil, fmt.Errorf("%s: %w", uri, err)
}

func (d *documents) read(ctx context.Context, uri string) ([]byte, error) {
	if file, ok := filePath(uri); ok {
		return readFile(file)
	}
	if d.resources == nil {
		return nil, fmt.Errorf("no KBS is configured: %w", errdefs.ErrFailedPrecondition)
	}
	b, err := d.resources.GetResource(ctx, uri)
	if err != nil {
		return nil, err
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("longer than %d bytes: %w", maxDocument, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// checkURI accepts what read understands.
func checkURI(uri string) error {
	if _, ok := filePath(uri); ok {
		return nil
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if ok && rest != "" && (scheme == "kbs" || strings.HasPrefix(scheme, "kbs+") && scheme != "kbs+") {
		return nil
	}
	return fmt.Errorf("%q is neither kbs:///repository/type/tag, kbs+plugin://…, file:///path nor an absolute path", clip(uri, 200))
}

// filePath returns the path of a file URI or of a bare absolute path.
func filePath(uri string) (string, bool) {
	file := strings.TrimPrefix(uri, "file://")
	return file, path.IsAbs(file) && path.Clean(file) == file
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fileError(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, fileError(err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("longer than %d bytes: %w", maxDocument, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

func fileError(err error) error {
	var class error = errdefs.ErrUnavailable
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		class = errdefs.ErrFailedPrecondition
	}
	return fmt.Errorf("%w: %w", err, class)
}
