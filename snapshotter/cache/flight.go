// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

var (
	errClosed = fmt.Errorf("cache: it stops: %w", errdefs.ErrUnavailable)
	errQueue  = fmt.Errorf("cache: too many downloads run: %w", errdefs.ErrUnavailable)
	// errNobody ends a flight that nobody reads.
	errNobody = fmt.Errorf("cache: nobody reads it: %w", context.Canceled)
	// errNotKept ends a flight of a blob that the disk does not take. It is to be
	// passed through.
	errNotKept = fmt.Errorf("cache: no room for it: %w", errdefs.ErrResourceExhausted)
)

// flight is the bytes of one blob on their way to the disk, or from a disk that
// is not believed yet, shared by any number of requests.
type flight struct {
	digest digest.Digest
	source source
	local  bool
	cancel context.CancelCauseFunc

	// The cache's mu guards these.
	readers int
	ended   bool
	idle    *time.Timer

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	ready   bool     // size and file are set
	size    int64    // -1 while it is not known
	file    *os.File // closed when it has ended and the last reader has left
	written int64
	done    bool // verified, size is known
	err     error
}

func newFlight(r blobRequest, local bool) *flight {
	return &flight{digest: r.digest, source: r.source, local: local, size: -1, changed: make(chan struct{})}
}

// change does something to what mu guards and tells all who wait.
func (f *flight) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

// begin says where the bytes go and how many there will be, -1 for not known.
func (f *flight) begin(file *os.File, size int64) {
	f.change(func() { f.file, f.size, f.ready = file, size, true })
}

// advance says that n bytes more are in the file.
func (f *flight) advance(n int) { f.change(func() { f.written += int64(n) }) }

// visibleLocked is how many bytes may be sent: not the last one, before the
// digest is known to hold.
func (f *flight) visibleLocked() int64 {
	if f.done {
		return f.size
	}
	if f.size < 0 {
		return max(f.written-1, 0)
	}
	return max(min(f.written, f.size-1), 0)
}

// await waits until there are bytes behind offset, or, for offset -1, until the
// size is known as far as it ever will be; that it is 0, only once the digest
// holds. It returns up to where bytes can be sent: offset itself at the end of
// the blob. blocks is called before it waits.
func (f *flight) await(ctx context.Context, offset int64, blocks func()) (visible, size int64, err error) {
	for {
		f.mu.Lock()
		visible, size, err = f.visibleLocked(), f.size, f.err
		ready, done, changed := f.ready, f.done, f.changed
		f.mu.Unlock()
		switch {
		case errdefs.IsDataLoss(err):
			return 0, size, err
		case offset < 0 && ready && size != 0 && err == nil, offset >= 0 && visible > offset, done:
			return visible, size, nil
		case err != nil:
			return 0, size, err
		}
		if blocks != nil {
			blocks()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, size, context.Cause(ctx)
		}
	}
}

// joinLocked adds a reader.
func (c *Cache) joinLocked(f *flight) {
	f.readers++
	if f.idle != nil {
		f.idle.Stop()
	}
}

// leave takes a reader away. A flight that has none ends after a while.
func (c *Cache) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.readers--; f.readers > 0 {
		return
	}
	if f.ended {
		f.closeFile()
		return
	}
	f.idle = time.AfterFunc(c.opts.Linger, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if f.readers == 0 {
			c.removeLocked(f) // so that nobody joins what ends
			f.cancel(errNobody)
		}
	})
}

// fly runs a flight. b is the blob of a local one.
func (c *Cache) fly(ctx context.Context, f *flight, b blob) {
	var err error
	if f.local {
		err = c.recheck(ctx, f, b)
	} else {
		err = c.download(ctx, f)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		level := slog.LevelDebug // what a guest makes up must not fill the log
		if errdefs.IsUnavailable(err) {
			level = slog.LevelInfo
		}
		c.log.Log(ctx, level, "cache: blob not to be had", "digest", f.digest.String(), "err", err)
	}
	c.mu.Lock()
	c.removeLocked(f)
	if err != nil {
		c.rememberLocked(f, err)
	}
	c.mu.Unlock()
	f.change(func() { f.done, f.err = err == nil, err })
	f.cancel(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.ended = true; f.idle != nil {
		f.idle.Stop()
	}
	if f.readers == 0 {
		f.closeFile()
	}
}

// removeLocked lets the next request begin another flight.
func (c *Cache) removeLocked(f *flight) {
	if c.flights[f.digest] == f {
		delete(c.flights, f.digest)
	}
}

func (f *flight) closeFile() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		_ = f.file.Close() // nothing is written to it any more
	}
}
