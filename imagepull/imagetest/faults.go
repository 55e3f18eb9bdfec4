// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"io"
	"net/http"
)

// Fault is one way for a GET to go wrong. Faults of a name are used up in the
// order they were added; the zero value is no fault.
type Fault struct {
	// Skip is how many requests pass unharmed before it; Times how many it
	// hits then, 0 means all from then on.
	Skip, Times int

	// Status answers with this instead; RetryAfter becomes its header.
	Status     int
	RetryAfter string
	// Redirect answers with a redirect to this base URL and the request's own
	// path; to the URL as it is, if it has a path.
	Redirect string
	// Mute never answers: the client waits for the header until it gives up.
	Mute bool
	// Raw is what the client gets instead of an HTTP answer.
	Raw func() io.Reader

	// Cut ends the connection, Stall sends nothing more until the client
	// gives up, each after this request's first After body bytes; below 0, so
	// many before the last.
	Cut, Stall bool
	After      int64
	// IgnoreRange answers ranges with the whole.
	IgnoreRange bool
	// Shift answers ranges with bytes so much further on, as if they were the
	// ones that were asked for.
	Shift int64
	// Chunked announces no length; Length another than the true one.
	Chunked bool
	Length  int64
	// Header has fields of the answer to set, after all others; those without
	// a value are left out of it.
	Header http.Header
	// Edit sends other content: what it makes of a copy of the true one.
	Edit func([]byte) []byte
	// Stream sends what it reads, as the client takes it; nothing of it is
	// held. Without Length none is announced.
	Stream func() io.Reader
}

// Fail adds a fault for a blob or manifest, by digest, tag, "token" for the
// token server, or "*" for all blobs and manifests.
func (r *Registry) Fail(name string, f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[name] = append(r.faults[name], &f)
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.faults)
}

// next takes the fault that hits this request.
func (r *Registry) next(name string) Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := []string{name, "*"}
	if name == tokenName {
		keys = keys[:1]
	}
	for _, key := range keys {
		list := r.faults[key]
		if len(list) == 0 {
			continue
		}
		f := list[0]
		if f.Skip > 0 {
			f.Skip--
			return Fault{}
		}
		hit := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				r.faults[key] = list[1:]
			}
		}
		return hit
	}
	return Fault{}
}

// A filler reads as so many bytes of head, then fill repeated.
type filler struct {
	head string
	fill byte
	left int64
}

// Filled is a reader of n bytes that takes no memory: head and then fill.
func Filled(head string, fill byte, n int64) func() io.Reader {
	return func() io.Reader { return &filler{head: head, fill: fill, left: n} }
}

func (f *filler) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), f.left)]
	n := copy(p, f.head)
	f.head = f.head[n:]
	for i := range p[n:] {
		p[n+i] = f.fill
	}
	f.left -= int64(len(p))
	return len(p), nil
}
