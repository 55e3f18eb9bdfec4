// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package document reads what configuration names by URI, an image policy or a
// key, and reads it again when it is old: resources of the KBS, entries of the
// measured init-data, files.
//
// Who names a document trusts its source. What was read is kept in memory, and
// nowhere else. The package has no client of its own: a ResourceGetter is asked
// for all that is no file.
package document

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

// ResourceGetter gets what is no file: kbs:///repository/type/tag or
// kbs+plugin://… of the KBS, initdata:///name of the measured init-data. The
// result belongs to the caller.
type ResourceGetter interface {
	GetResource(ctx context.Context, uri string) ([]byte, error)
}

// MaxSize bounds a document, in bytes.
const MaxSize = 1 << 20

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

// Reader reads documents. It is safe for concurrent use; one read of a document
// serves all who wait for it.
type Reader struct {
	resources       ResourceGetter // may be nil
	every, maxStale time.Duration
	now             func() time.Time

	mu    sync.Mutex
	byURI map[string]*entry // guarded by mu
}

type entry struct {
	turn  chan struct{} // holds one token: whose turn it is to read
	bytes []byte        // guarded by the token, like the next two
	read  time.Time     // zero if it never was
	away  error         // why the last read did not reach the source, else nil
	reads atomic.Int64  // that have ended
}

// NewReader makes a Reader; it reads nothing yet. resources may be nil where only
// files are read.
func NewReader(resources ResourceGetter, r Refresh) *Reader {
	d := &Reader{resources: resources, every: r.Every, maxStale: r.MaxStale, now: r.Now, byURI: map[string]*entry{}}
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

// Get returns the document, not older than Refresh allows. The bytes are
// shared: they must not be changed.
func (d *Reader) Get(ctx context.Context, uri string) ([]byte, error) {
	d.mu.Lock()
	doc, ok := d.byURI[uri]
	if !ok {
		doc = &entry{turn: make(chan struct{}, 1)}
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
func (doc *entry) standIn(uri string, may bool, err error) ([]byte, error) {
	if may && !doc.read.IsZero() {
		return doc.bytes, nil
	}
	return nil, fmt.Errorf("%s: %w", uri, err)
}

func (d *Reader) read(ctx context.Context, uri string) ([]byte, error) {
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
	if len(b) > MaxSize {
		return nil, fmt.Errorf("longer than %d bytes: %w", MaxSize, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// CheckURI accepts kbs:///repository/type/tag, kbs+plugin://…,
// initdata:///name, file:///path and absolute paths.
func CheckURI(uri string) error {
	if _, ok := filePath(uri); ok {
		return nil
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if scheme == "initdata" && len(rest) > 1 && rest[0] == '/' {
		return nil
	}
	if ok && rest != "" && (scheme == "kbs" || strings.HasPrefix(scheme, "kbs+") && scheme != "kbs+") {
		return nil
	}
	return fmt.Errorf("%q is neither kbs:///repository/type/tag, kbs+plugin://…, initdata:///name, file:///path nor an absolute path", shortened(uri))
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
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fileError(err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("longer than %d bytes: %w", MaxSize, errdefs.ErrInvalidArgument)
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

// shortened is a URI for an error.
func shortened(uri string) string {
	const most = 200
	if len(uri) > most {
		return uri[:most] + "…"
	}
	return uri
}
