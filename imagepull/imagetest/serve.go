// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// tokenName is the token server in Fail and Requests.
const tokenName = "token"

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	repository, kind, name := split(req.URL.Path)
	switch {
	case req.URL.Path == "/token":
		name = tokenName
	case !r.allowed(w, req):
		return
	case req.Method != http.MethodGet || kind == "":
		r.inner.ServeHTTP(w, req)
		return
	}
	f := r.next(name)
	counter := &faultWriter{ResponseWriter: w, req: req, fault: f}
	entry := r.arrived(name, req)
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		entry.Status, entry.Served = counter.status, counter.served
		if r.busy--; r.busy == 0 {
			r.idle.Broadcast()
		}
	}()
	if f.instead(counter, req) {
		return
	}
	f.send(counter, req, r.answer(kind, repository, name, req))
}

// answer is what the registry would say to a request without a range.
type answer struct {
	status  int
	header  http.Header
	content []byte
}

func (r *Registry) answer(kind, repository, name string, req *http.Request) answer {
	rec := httptest.NewRecorder()
	switch kind {
	case "blobs":
		content := r.Blob(repository, digest.Digest(name))
		if content == nil {
			fail(rec, http.StatusNotFound)
			break
		}
		return answer{http.StatusOK, http.Header{"Content-Type": {"application/octet-stream"}, "Docker-Content-Digest": {name}}, content}
	case "manifests":
		r.mu.Lock()
		d, ok := r.documents[name]
		r.mu.Unlock()
		if ok {
			return answer{http.StatusOK, http.Header{"Content-Type": {d.mediaType}}, d.body}
		}
		r.inner.ServeHTTP(rec, req)
	default:
		r.token(rec, req)
	}
	return answer{rec.Code, rec.Header(), rec.Body.Bytes()}
}

// instead does what the fault does in the place of an answer, if it does.
func (f Fault) instead(w *faultWriter, req *http.Request) bool {
	switch {
	case f.Mute:
		<-req.Context().Done()
	case f.Raw != nil:
		conn, _, err := http.NewResponseController(w.ResponseWriter).Hijack()
		if err != nil {
			return true
		}
		defer conn.Close()
		w.served, _ = io.Copy(conn, f.Raw()) // the client may well go away
	case f.Redirect != "":
		to, err := url.Parse(f.Redirect)
		if err == nil && to.Path == "" {
			to.Path = req.URL.Path
		}
		w.Header().Set("Location", to.String())
		w.WriteHeader(http.StatusTemporaryRedirect)
	case f.Status != 0 && f.Stream == nil:
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		f.setHeader(w)
		fail(w, f.Status)
	default:
		return false
	}
	return true
}

// send sends an answer with all that is wrong with it.
func (f Fault) send(w *faultWriter, req *http.Request, a answer) {
	if f.Edit != nil {
		a.content = f.Edit(bytes.Clone(a.content))
	}
	body, length := io.Reader(bytes.NewReader(a.content)), int64(len(a.content))
	header := req.Header.Get("Range")
	switch {
	case f.Stream != nil:
		body, length = f.Stream(), 0
		if f.Status != 0 {
			a.status = f.Status
		}
	case header != "" && !f.IgnoreRange && a.status == http.StatusOK:
		first, last, ok := parseRange(header, length)
		if !ok {
			fail(w, http.StatusRequestedRangeNotSatisfiable)
			return
		}
		a.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, length))
		a.status, length = http.StatusPartialContent, last+1-first
		part := bytes.Clone(a.content[max(first+f.Shift, 0):])
		for int64(len(part)) < length {
			part = append(part, part...)
		}
		body = bytes.NewReader(part[:length])
	}
	if f.After < 0 {
		w.fault.After += length
	}
	for k, v := range a.header {
		w.Header()[k] = v
	}
	if f.Length != 0 {
		length = f.Length
		body = io.LimitReader(body, length)
	}
	w.Header().Del("Content-Length")
	if !f.Chunked && (f.Stream == nil || f.Length != 0) {
		w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	f.setHeader(w)
	w.WriteHeader(a.status)
	if f.Chunked {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
	_, _ = io.Copy(struct{ io.Writer }{w}, body)
}

func (f Fault) setHeader(w http.ResponseWriter) {
	for k, v := range f.Header {
		w.Header()[k] = v
		if len(v) == 0 {
			w.Header().Del(k)
		}
	}
}

// arrived notes a request.
func (r *Registry) arrived(name string, req *http.Request) *Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	entry := &Request{Range: req.Header.Get("Range"), Authorization: req.Header.Get("Authorization")}
	r.requests[name] = append(r.requests[name], entry)
	r.busy++
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
