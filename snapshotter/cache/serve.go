// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

// sendChunk is how much is sent to a guest within one StallTimeout.
const sendChunk = 1 << 20

// ServeHTTP answers a guest.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !reading(w, r) {
		return
	}
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // it is not waited for
		sayError(w, http.StatusBadRequest, "UNSUPPORTED", "no request here has a body")
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.Header().Set("Content-Length", "0")
		return
	}
	request, ok := parseRequest(r.URL)
	if !ok {
		sayError(w, http.StatusNotFound, "UNSUPPORTED", "this cache has blobs only: ask the registry")
		return
	}
	if request.source.registry == "" {
		request.source.registry = c.only
	}
	if _, ok := c.upstream.plain[request.source.registry]; !ok {
		sayError(w, http.StatusNotFound, "NAME_UNKNOWN", "this cache is not for the registry that parameter ns names: ask the registry")
		return
	}
	c.metrics.readers.Inc()
	defer c.metrics.readers.Dec()
	(&exchange{cache: c, w: w, r: r, blobRequest: request, control: http.NewResponseController(w)}).serve()
}

// reading answers requests that would change something.
func reading(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	sayError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
	return false
}

// sayError answers with the registries' JSON. code and text have no quotes.
func sayError(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`+"\n", code, text) // a guest that is gone needs none
}

// exchange is one request for a blob, and its answer.
type exchange struct {
	blobRequest
	cache   *Cache
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
}

func (x *exchange) serve() {
	defer func() {
		_ = x.control.SetWriteDeadline(time.Time{}) // the connection is used again
	}()
	for again := true; ; again = false {
		found, err := x.cache.find(x.r.Context(), x.blobRequest, x.r.Method == http.MethodGet)
		switch {
		case errors.Is(err, errNotKept), err == nil && found.flight == nil && found.blob.digest == "":
			x.direct()
		case err != nil:
			x.refuse(err)
		case found.flight == nil:
			file, err := x.cache.shelf.open(found.blob)
			if err != nil && again {
				continue // it was dropped
			}
			if err != nil {
				x.refuse(fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
				return
			}
			x.hit(file, found.blob.size)
		default:
			if x.follow(found, again) {
				continue
			}
		}
		return
	}
}

// hit sends a blob that is on disk.
func (x *exchange) hit(file *os.File, size int64) {
	defer file.Close()
	x.count(resultHit)
	s, ok := x.header(size)
	if !ok {
		return
	}
	if _, err := file.Seek(s.first, io.SeekStart); err != nil {
		x.cut("read", err)
	}
	for s.first < s.end {
		x.deadline()
		// The writer itself, so that the kernel copies.
		n, err := io.CopyN(x.w, file, min(sendChunk, s.end-s.first))
		x.cache.metrics.served.AddInt64(n)
		if err != nil {
			x.cut("send", err)
		}
		s.first += n
	}
}

// follow sends a blob while it arrives. It is true where nothing was sent and
// asking once more may do better.
func (x *exchange) follow(found found, again bool) bool {
	f := found.flight
	defer x.cache.leave(f)
	_, size, err := f.await(x.r.Context(), -1, nil)
	switch {
	case err == nil:
	case x.r.Context().Err() != nil:
		return false
	case errors.Is(err, errNotKept):
		x.direct()
		return false
	case again && (!found.began || f.local): // it was another's source, or is to be fetched
		return true
	default:
		x.refuse(err)
		return false
	}
	switch {
	case f.local:
		x.count(resultHit)
	case found.began:
		x.count(resultMiss)
	default:
		x.count(resultShared)
	}
	if s, ok := x.header(size); ok {
		x.tail(f, s)
	}
	return false
}

// tail sends what arrives. The end of s is -1 where the size is not known.
func (x *exchange) tail(f *flight, s span) {
	buf := make([]byte, min(chunk, uint64(s.end-s.first)))
	flush := func() { _ = x.control.Flush() } // an error shows at the next write
	for s.end < 0 || s.first < s.end {
		visible, size, err := f.await(x.r.Context(), s.first, flush)
		switch {
		case errors.Is(err, errNotKept):
			x.passOn(s)
			return
		case err != nil:
			x.cut("read", err)
		case visible <= s.first && s.first >= size:
			return
		}
		if s.end >= 0 {
			visible = min(visible, s.end)
		}
		n, err := f.file.ReadAt(buf[:min(int64(len(buf)), visible-s.first)], s.first)
		if n == 0 && err != nil {
			x.cut("read", err)
		}
		x.write(buf[:n])
		s.first += int64(n)
	}
}

// direct passes a blob through that is not kept.
func (x *exchange) direct() {
	c := x.cache
	free, err := c.slot(x.r.Context())
	if err != nil {
		x.refuse(err)
		return
	}
	defer free()
	// Ranges are made of the size that the answer tells; those from the end on
	// are cut out of the whole.
	const unknown = 1 << 62
	w := wanted{method: x.r.Method}
	if s, partial, _ := parseRange(x.r.Header, x.tag(), unknown); partial && s.first < unknown/2 && w.method == http.MethodGet {
		if w.first = s.first; s.end < unknown {
			w.end = s.end
		}
	}
	a, err := c.upstream.open(x.r.Context(), x.source, x.digest, w)
	if err != nil {
		x.refuse(err)
		return
	}
	defer a.body.Close()
	if a.size < 0 && w != (wanted{method: x.r.Method}) {
		x.refuse(fmt.Errorf("cache: the registry tells no size: %w", errdefs.ErrNotFound))
		return
	}
	x.count(resultDirect)
	s, ok := x.header(a.size)
	if !ok || x.r.Method == http.MethodHead {
		return
	}
	if _, err := io.CopyN(io.Discard, a.body, s.first-w.first); err != nil {
		x.cut("fetch", err)
	}
	x.copy(a.body, s)
}

// passOn goes on with s at the registry.
func (x *exchange) passOn(s span) {
	free, err := x.cache.slot(x.r.Context())
	if err != nil {
		x.cut("fetch", err)
	}
	defer free()
	a, err := x.cache.upstream.open(x.r.Context(), x.source, x.digest, wanted{http.MethodGet, s.first, max(s.end, 0)})
	if err != nil {
		x.cut("fetch", err)
	}
	defer a.body.Close()
	x.copy(a.body, s)
}

// copy sends s of a body that is at its first byte.
func (x *exchange) copy(body io.Reader, s span) {
	buf := make([]byte, chunk)
	for s.end < 0 || s.first < s.end {
		want := buf
		if s.end >= 0 {
			want = buf[:min(chunk, s.end-s.first)]
		}
		n, err := body.Read(want)
		x.cache.metrics.direct.Add(n)
		x.write(want[:n])
		s.first += int64(n)
		if err == io.EOF && (s.end < 0 || s.first == s.end) {
			return
		}
		if err != nil {
			x.cut("fetch", err)
		}
	}
}

func (x *exchange) tag() string { return strconv.Quote(x.digest.String()) }

// header sends the header of a blob of size bytes, -1 for not known. ok is false
// where no body follows.
func (x *exchange) header(size int64) (s span, ok bool) {
	h := x.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", x.digest.String())
	h.Set("Etag", x.tag())
	s, status := span{0, -1}, http.StatusOK
	if size >= 0 {
		h.Set("Accept-Ranges", "bytes")
		var partial, satisfiable bool
		s, partial, satisfiable = parseRange(x.r.Header, x.tag(), size)
		if !satisfiable {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			sayError(x.w, http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID", "the blob ends before this range")
			return s, false
		}
		if partial {
			status = http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", s.first, s.end-1, size))
		}
		h.Set("Content-Length", strconv.FormatInt(s.end-s.first, 10))
	}
	x.w.WriteHeader(status)
	return s, x.r.Method != http.MethodHead
}

// deadline gives the guest time to take the next bytes.
func (x *exchange) deadline() {
	_ = x.control.SetWriteDeadline(time.Now().Add(x.cache.opts.StallTimeout)) // recorders have none
}

func (x *exchange) write(b []byte) {
	if len(b) == 0 {
		return
	}
	x.deadline()
	n, err := x.w.Write(b)
	x.cache.metrics.served.Add(n)
	if err != nil {
		x.cut("send", err)
	}
}

// refuse answers with an error instead of the blob.
func (x *exchange) refuse(err error) {
	if x.r.Context().Err() != nil {
		return
	}
	if errdefs.IsUnavailable(err) {
		x.count(resultFailed)
		status := http.StatusServiceUnavailable
		var from *refusal
		if errors.As(err, &from) {
			status = http.StatusBadGateway
		}
		sayError(x.w, status, "UNAVAILABLE", "the cache cannot get this blob now: ask the registry")
		return
	}
	x.count(resultAbsent)
	sayError(x.w, http.StatusNotFound, "BLOB_UNKNOWN", "the cache cannot get this blob: ask the registry")
}

// cut ends an answer that has begun in a way that no client takes for its end.
// It does not return.
func (x *exchange) cut(stage string, err error) {
	if x.r.Context().Err() == nil {
		x.count(resultFailed)
		x.cache.log.Debug("cache: answer cut off", "stage", stage, "digest", x.digest.String(), "err", err)
	}
	panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut a connection
}

func (x *exchange) count(r result) { x.cache.metrics.requests[r].Inc() }
