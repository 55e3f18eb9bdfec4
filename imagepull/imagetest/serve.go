// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Fault is one way for a GET to go wrong. Faults of a name are used up in the
// order they were added; the zero value is no fault.
type Fault struct {
	// Times is how many requests it hits; 0 means all from then on.
	Times int
	// Status answers with this instead; RetryAfter becomes its header.
	Status     int
	RetryAfter string
	// Cut ends the connection, Stall sends nothing more until the client
	// gives up, each after this request's first After body bytes.
	Cut, Stall bool
	After      int64
	// IgnoreRange answers ranges with the whole.
	IgnoreRange bool
	// Chunked announces no length.
	Chunked bool
}

// Fail adds a fault for a blob or manifest, by digest, tag, or "*" for all.
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
	for _, key := range []string{name, "*"} {
		list := r.faults[key]
		if len(list) == 0 {
			continue
		}
		f := *list[0]
		if list[0].Times > 0 {
			if list[0].Times--; list[0].Times == 0 {
				r.faults[key] = list[1:]
			}
		}
		return f
	}
	return Fault{}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.token(w, req)
		return
	}
	if !r.allowed(w, req) {
		return
	}
	repository, kind, name := split(req.URL.Path)
	if req.Method != http.MethodGet || kind == "" {
		r.inner.ServeHTTP(w, req)
		return
	}
	f := r.next(name)
	counter := &faultWriter{ResponseWriter: w, req: req, fault: f}
	entry := r.arrived(name, req.Header.Get("Range"))
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		entry.Status, entry.Served = counter.status, counter.served
	}()
	switch {
	case f.Status != 0:
		if f.RetryAfter != "" {
			counter.Header().Set("Retry-After", f.RetryAfter)
		}
		fail(counter, f.Status)
	case kind == "blobs":
		r.blob(counter, req, repository, name, f)
	default:
		r.inner.ServeHTTP(counter, req)
	}
}

// arrived notes a request.
func (r *Registry) arrived(name, header string) *Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	entry := &Request{Range: header}
	r.requests[name] = append(r.requests[name], entry)
	if len(r.requests[name]) == 1 {
		close(r.beganLocked(name))
	}
	return entry
}

// split takes /v2/<repository>/<kind>/<name> apart; other paths give kind "".
func split(path string) (repository, kind, name string) {
	parts := strings.Split(strings.TrimPrefix(path, "/v2/"), "/")
	if len(parts) < 3 {
		return "", "", ""
	}
	kind, name = parts[len(parts)-2], parts[len(parts)-1]
	if kind != "blobs" && kind != "manifests" {
		return "", "", ""
	}
	return strings.Join(parts[:len(parts)-2], "/"), kind, name
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, repository, name string, f Fault) {
	content := r.Blob(repository, digest.Digest(name))
	if content == nil {
		fail(w, http.StatusNotFound)
		return
	}
	size, status := int64(len(content)), http.StatusOK
	if header := req.Header.Get("Range"); header != "" && !f.IgnoreRange {
		first, last, ok := parseRange(header, size)
		if !ok {
			fail(w, http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
		content, status = content[first:last+1], http.StatusPartialContent
	}
	w.Header().Set("Docker-Content-Digest", name)
	w.Header().Set("Content-Type", "application/octet-stream")
	if !f.Chunked {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	}
	w.WriteHeader(status)
	if f.Chunked {
		_ = http.NewResponseController(w).Flush()
	}
	_, _ = w.Write(content)
}

// parseRange reads bytes=first-[last].
func parseRange(header string, size int64) (first, last int64, ok bool) {
	a, b, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	first, err := strconv.ParseInt(a, 10, 64)
	if !ok || err != nil || first >= size {
		return 0, 0, false
	}
	last = size - 1
	if n, err := strconv.ParseInt(b, 10, 64); err == nil && n < last {
		last = n
	}
	return first, last, last >= first
}

func fail(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	code := strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", "_"))
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": "injected by the test"}}})
}

// faultWriter counts the body and ends it where the fault says.
type faultWriter struct {
	http.ResponseWriter
	req    *http.Request
	fault  Fault
	status int
	served int64
}

func (w *faultWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *faultWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *faultWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	part := p
	broken := w.fault.Cut || w.fault.Stall
	if left := w.fault.After - w.served; broken && int64(len(p)) > left {
		part = p[:left]
	}
	n, err := w.ResponseWriter.Write(part)
	w.served += int64(n)
	if err != nil || len(part) == len(p) {
		return n, err
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	if w.fault.Stall {
		<-w.req.Context().Done()
		return n, io.ErrClosedPipe
	}
	panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut a connection
}
