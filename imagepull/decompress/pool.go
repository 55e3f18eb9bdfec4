// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress

import (
	"io"
	"slices"
	"sync"
)

// decoder is one that can be used again.
type decoder interface {
	io.Reader
	// reset begins with new data.
	reset(r io.Reader) error
	// forget lets go of the reader it had.
	forget() error
}

// Pool makes readers and keeps the decoders of those that were read to their
// end, while others are still open, for the next. What it keeps, windows of
// zstd above all, would otherwise be garbage of some MiB for each layer. With
// its last reader closed, a Pool holds no memory. The zero Pool is ready, and
// safe for concurrent use.
type Pool struct {
	mu   sync.Mutex
	open int                  // readers; guarded by mu, as is idle
	idle map[format][]decoder // nil without readers
}

// decoder returns a decoder of r, which release takes back.
func (p *Pool) decoder(f format, r io.Reader) (decoder, error) {
	if f == formatNone {
		return plain{r}, nil
	}
	p.mu.Lock()
	p.open++
	var d decoder
	if n := len(p.idle[f]); n > 0 {
		d = p.idle[f][n-1]
		p.idle[f] = slices.Delete(p.idle[f], n-1, n)
	}
	p.mu.Unlock()
	var err error
	switch {
	case d != nil:
		err = d.reset(r)
	case f == formatGzip:
		d, err = newGzip(r)
	default:
		d, err = newZstd(r)
	}
	if err != nil {
		p.release(f, nil, false)
		return nil, err
	}
	return d, nil
}

// release takes a decoder back. One that may be used again is kept as long as
// there are other readers.
func (p *Pool) release(f format, d decoder, again bool) {
	if f == formatNone {
		return
	}
	again = again && d.forget() == nil
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	switch {
	case p.open == 0:
		p.idle = nil
	case again:
		if p.idle == nil {
			p.idle = make(map[format][]decoder)
		}
		p.idle[f] = append(p.idle[f], d)
	}
}

// plain is the decoder of what is not compressed.
type plain struct{ io.Reader }

func (plain) reset(io.Reader) error { return nil } // it is never used again
func (plain) forget() error         { return nil }
