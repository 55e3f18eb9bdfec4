// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"errors"
	"io"
	"sync"
)

// Four buffers of 64 KiB keep both sides busy; more only cost memory.
const (
	aheadSize  = 64 << 10
	aheadCount = 4
)

// ring is the buffers of a readAhead.
type ring [aheadCount][aheadSize]byte

// readAhead reads another reader in a goroutine of its own, a few buffers
// ahead of whoever reads it. Close ends that goroutine and waits for it, so
// the reader below must return.
type readAhead struct {
	full, free chan []byte
	stop       chan struct{}
	stopOnce   sync.Once
	ended      chan struct{}
	err        error // of the reader below; written before full is closed

	buf, rest []byte // owned by Read
}

// newReadAhead uses a ring that nobody else may use before Close has returned
// and nobody reads any more.
func newReadAhead(r io.Reader, buffers *ring) *readAhead {
	a := &readAhead{
		full:  make(chan []byte, aheadCount),
		free:  make(chan []byte, aheadCount),
		stop:  make(chan struct{}),
		ended: make(chan struct{}),
	}
	for i := range buffers {
		a.free <- buffers[i][:]
	}
	go a.fill(r)
	return a
}

func (a *readAhead) fill(r io.Reader) {
	defer close(a.ended)
	defer close(a.full)
	for {
		select {
		case <-a.stop:
			a.err = io.ErrClosedPipe
			return
		case buf := <-a.free:
			n, err := a.one(r, buf[:aheadSize])
			if n > 0 {
				a.full <- buf[:n] // never blocks: there are no more buffers than places
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}
}

// one fills a buffer as far as it can before an error or the stop.
func (a *readAhead) one(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		select {
		case <-a.stop:
			return n, io.ErrClosedPipe
		default:
		}
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read returns what is there, in the order of the reader below, and at the end
// its error.
func (a *readAhead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.buf != nil {
			a.free <- a.buf
			a.buf = nil
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.buf, a.rest = buf, buf
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine and waits for it. A Read that waits meanwhile fails.
func (a *readAhead) Close() {
	a.stopOnce.Do(func() { close(a.stop) })
	<-a.ended
}

// failure is the error of the reader below, nil for its end. It is valid after
// Close.
func (a *readAhead) failure() error {
	if errors.Is(a.err, io.EOF) || errors.Is(a.err, io.ErrClosedPipe) {
		return nil
	}
	return a.err
}
