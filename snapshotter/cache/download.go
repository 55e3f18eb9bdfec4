// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	chunk       = 256 << 10
	maxAttempts = 5
	// step is what is reserved at a time for a blob of unknown size.
	step = 8 << 20
)

// download is one blob being fetched.
type download struct {
	cache    *Cache
	flight   *flight
	file     *os.File
	hash     hash.Hash
	written  int64
	size     int64 // -1 while it is not known
	reserved int64
	begun    bool // the flight has the file
}

// download fetches a blob and keeps it if its digest holds.
func (c *Cache) download(ctx context.Context, f *flight) (err error) {
	free, err := c.slot(ctx)
	if err != nil {
		return err
	}
	defer free()
	file, err := os.CreateTemp(c.shelf.partial(), f.digest.Encoded()[:12]+"-*")
	if err != nil {
		return c.notKept(f, err)
	}
	d := &download{cache: c, flight: f, file: file, hash: f.digest.Algorithm().Hash(), size: -1}
	defer func() {
		if err == nil {
			return
		}
		c.shelf.release(d.reserved)
		if rerr := os.Remove(file.Name()); rerr != nil {
			c.log.Warn("cache: partial blob stays until the next start", "err", rerr)
		}
		if !d.begun { // else the last reader closes it
			_ = file.Close()
		}
	}()
	if err := d.fetch(ctx); err != nil {
		return err
	}
	if got := digest.NewDigest(f.digest.Algorithm(), d.hash); got != f.digest {
		c.metrics.wrong.Inc()
		c.log.Warn("cache: registry sends wrong bytes", "digest", f.digest.String(), "registry", f.source.registry, "repository", f.source.repository)
		return fmt.Errorf("cache: %s of registry %s does not match its digest: %w", f.digest, f.source.registry, errdefs.ErrDataLoss)
	}
	f.change(func() { f.size = d.size })
	if err := c.shelf.commit(file.Name(), f.digest, d.size, d.reserved); err != nil {
		return c.notKept(f, err) // its readers have all but the last byte
	}
	return nil
}

// notKept is errNotKept, its reason logged.
func (c *Cache) notKept(f *flight, err error) error {
	c.log.Warn("cache: blob is passed through", "digest", f.digest.String(), "err", err)
	return errNotKept
}

// fetch reads all of the blob, in as many attempts as it takes and may.
func (d *download) fetch(ctx context.Context) error {
	delay := d.cache.opts.RetryDelay
	for attempt := 1; ; attempt++ {
		err := d.attempt(ctx)
		if err == nil {
			return nil
		}
		if !errdefs.IsUnavailable(err) || attempt == maxAttempts || ctx.Err() != nil {
			return err
		}
		d.cache.metrics.retries.Inc()
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		delay *= 2
	}
}

// attempt asks the registry for what is missing. Unavailable is worth another.
func (d *download) attempt(ctx context.Context) error {
	f := d.flight
	a, err := d.cache.upstream.open(ctx, f.source, f.digest, wanted{method: http.MethodGet, first: d.written})
	if err != nil {
		return err
	}
	defer a.body.Close()
	if a.size >= 0 && d.size >= 0 && a.size != d.size {
		return fmt.Errorf("cache: %s of registry %s has %d bytes, and had %d: %w", f.digest, f.source.registry, a.size, d.size, errdefs.ErrDataLoss)
	}
	if a.size >= 0 && d.size < 0 {
		if a.size < d.written {
			return fmt.Errorf("cache: %s of registry %s has %d bytes, and had %d or more: %w", f.digest, f.source.registry, a.size, d.written, errdefs.ErrDataLoss)
		}
		d.size = a.size
		if err := d.provide(d.size - d.reserved); err != nil {
			return err
		}
	}
	if !d.begun {
		d.begun = true
		f.begin(d.file, d.size)
	}
	err = d.copy(a.body)
	var broken *bodyError
	switch {
	case errors.As(err, &broken):
		return refuse(f.source, broken.err)
	case err != nil:
		return err
	case d.size >= 0 && d.written < d.size:
		return refuse(f.source, io.ErrUnexpectedEOF)
	case d.size >= 0 && d.written > d.size:
		return fmt.Errorf("cache: %s of registry %s has more than its %d bytes: %w", f.digest, f.source.registry, d.size, errdefs.ErrDataLoss)
	}
	d.size = d.written
	return nil
}

// bodyError is an error of the registry's body, not of the disk.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }

// copy takes the body to the file, up to its end.
func (d *download) copy(body io.Reader) error {
	buf := make([]byte, chunk)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if d.size < 0 && d.written+int64(n) > d.reserved {
				if err := d.provide(step); err != nil {
					return err
				}
			}
			if err := d.write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &bodyError{err}
		}
		if d.size >= 0 && d.written > d.size {
			return nil // the caller says so
		}
	}
}

// provide reserves n bytes of the limit; of the disk too, where the size is
// known.
func (d *download) provide(n int64) error {
	c := d.cache
	if n <= 0 {
		return nil
	}
	if !c.shelf.reserve(n) {
		return c.notKept(d.flight, fmt.Errorf("it does not fit into the limit of %d bytes beside other downloads", c.opts.MaxBytes))
	}
	d.reserved += n
	if d.size < 0 {
		return nil // writing will tell
	}
	return d.room(func() error {
		err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, d.size)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil // as above
		}
		return err
	})
}

// write appends b to the file, the hash and what readers see.
func (d *download) write(b []byte) error {
	done := 0
	err := d.room(func() error {
		n, err := d.file.WriteAt(b[done:], d.written+int64(done))
		done += n
		return err
	})
	if err != nil {
		return err
	}
	d.hash.Write(b)
	d.written += int64(len(b))
	d.flight.advance(len(b))
	d.cache.metrics.fetched.Add(len(b))
	return nil
}

// room does something that needs disk space, as often as there is a blob to
// remove for it.
func (d *download) room(do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
		if !full || !d.cache.shelf.evict() {
			return d.cache.notKept(d.flight, err)
		}
	}
}

// recheck reads a blob of the disk whose bytes have not been looked at since the
// start, or for long. Its readers follow.
func (c *Cache) recheck(ctx context.Context, f *flight, b blob) error {
	file, err := c.shelf.open(b)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	f.begin(file, b.size)
	sum := f.digest.Algorithm().Hash()
	buf := make([]byte, chunk)
	for at := int64(0); at < b.size && err == nil; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var n int
		if n, err = file.ReadAt(buf[:min(chunk, b.size-at)], at); n > 0 {
			sum.Write(buf[:n])
			at += int64(n)
			f.advance(n)
		}
	}
	if got := digest.NewDigest(f.digest.Algorithm(), sum); got != f.digest {
		c.shelf.drop(f.digest)
		c.metrics.wrong.Inc()
		c.log.Warn("cache: removed a blob that has changed on disk", "digest", f.digest.String(), "err", err)
		return fmt.Errorf("cache: %s has changed on disk: %w", f.digest, errdefs.ErrDataLoss)
	}
	c.shelf.checked(f.digest)
	return nil
}
