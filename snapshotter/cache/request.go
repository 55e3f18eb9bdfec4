// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxRepository is the limit of distribution's own names.
const maxRepository = 255

// source is where a blob can be fetched.
type source struct {
	registry   string // as references name it: host[:port]
	repository string
}

// blobRequest is a request for a blob.
type blobRequest struct {
	digest digest.Digest
	source source // without registry, if the request names none
}

// parseRequest reads a path and query. ok is false for all that is not a blob.
// Every part of the result can be put into a URL as it is, and the digest into
// the name of a file.
func parseRequest(u *url.URL) (r blobRequest, ok bool) {
	rest, ok := strings.CutPrefix(u.Path, "/v2/")
	if !ok {
		return r, false
	}
	at := strings.LastIndex(rest, "/blobs/")
	if at < 0 {
		return r, false
	}
	r.source.repository, r.digest = rest[:at], digest.Digest(rest[at+len("/blobs/"):])
	if !validRepository(r.source.repository) || !validDigest(r.digest) {
		return r, false
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["ns"]) > 1 {
		return r, false
	}
	if ns := query.Get("ns"); ns != "" {
		if !validRegistry(ns) {
			return r, false
		}
		r.source.registry = strings.ToLower(ns)
	}
	return r, true
}

func validDigest(d digest.Digest) bool {
	switch algorithm, _, _ := strings.Cut(string(d), ":"); digest.Algorithm(algorithm) {
	case digest.SHA256, digest.SHA512:
		return d.Validate() == nil
	}
	return false
}

// validRepository follows the distribution spec: components of lower-case
// letters and digits, with ., _, __ or dashes between them.
func validRepository(s string) bool {
	if len(s) > maxRepository {
		return false
	}
	for component := range strings.SplitSeq(s, "/") {
		if !validComponent(component) {
			return false
		}
	}
	return true
}

func validComponent(s string) bool {
	for s != "" {
		n := 0
		for n < len(s) && alphanumeric(s[n]) {
			n++
		}
		if n == 0 {
			return false
		}
		if s = s[n:]; s == "" {
			return true
		}
		n = len(s) - len(strings.TrimLeft(s, s[:1]))
		switch separator := s[:n]; {
		case separator == ".", separator == "_", separator == "__", s[0] == '-':
		default:
			return false
		}
		s = s[n:]
	}
	return false
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// validRegistry is true for host[:port], the host a name, an address or an IPv6
// address in brackets.
func validRegistry(s string) bool {
	u, err := url.Parse("https://" + s)
	if err != nil || len(s) > maxRepository || u.Host != s || u.Hostname() == "" || strings.HasSuffix(s, ":") {
		return false
	}
	for _, c := range []byte(s) {
		if upper := 'A' <= c && c <= 'Z'; !upper && !alphanumeric(c) && !strings.ContainsRune(".-:[]", rune(c)) {
			return false
		}
	}
	return true
}

// span is what a request wants of a blob: the bytes from first to before end.
type span struct{ first, end int64 }

// parseRange reads a Range header for a blob of size bytes. partial is false
// where the whole is to be sent: no header, several ranges, or no sense in it.
// satisfiable is false where the range begins behind the end.
func parseRange(header http.Header, tag string, size int64) (s span, partial, satisfiable bool) {
	whole := span{0, size}
	if condition := header.Get("If-Range"); condition != "" && condition != tag {
		return whole, false, true
	}
	spec, ok := strings.CutPrefix(header.Get("Range"), "bytes=")
	if !ok {
		return whole, false, true
	}
	from, to, ok := strings.Cut(strings.TrimSpace(spec), "-")
	first, fromOK := parsePosition(from)
	last, toOK := parsePosition(to)
	switch {
	case !ok || from != "" && !fromOK || to != "" && !toOK || !fromOK && !toOK || fromOK && toOK && last < first:
		return whole, false, true
	case !fromOK: // the last so many
		return span{max(size-last, 0), size}, true, last > 0 && size > 0
	case first >= size:
		return whole, true, false
	case !toOK:
		return span{first, size}, true, true
	}
	return span{first, min(last, size-1) + 1}, true, true
}

// parsePosition reads digits; those too large for any blob are the largest.
func parsePosition(s string) (int64, bool) {
	const largest = 1 << 62
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = min(n, largest/10-1)*10 + int64(c-'0')
	}
	return n, s != ""
}
