// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"bytes"
	"io"
	"net/http"
	"slices"
)

// Target is the part of a pull that a Case is about.
type Target string

// The targets. OnLayer is the middle one of the image.
const (
	OnTag      Target = "tag"
	OnManifest Target = "manifest"
	OnConfig   Target = "config"
	OnLayer    Target = "layer"
	OnToken    Target = "token"
)

// Case is one entry of the table of faults: what goes wrong with the GETs of
// one target, first fault first.
type Case struct {
	Name   string
	On     Target
	Faults []Fault
}

// String is unique in the table.
func (c Case) String() string { return string(c.On) + ": " + c.Name }

// Inflict makes the registry fail as the case says when it serves p.
func (c Case) Inflict(r *Registry, p Pushed) {
	for _, f := range c.Faults {
		r.Fail(p.Name(c.On), f)
	}
}

// Name is what the registry calls a target: a digest, a tag, or "token".
func (p Pushed) Name(on Target) string {
	switch on {
	case OnTag:
		return p.tag
	case OnManifest:
		return p.Manifest.Digest.String()
	case OnConfig:
		return p.ConfigDigest.String()
	case OnLayer:
		return p.Layers[len(p.Layers)/2].Digest.String()
	}
	return tokenName
}

// Large is the size of what the table sends where little is expected: as much
// as would be missed if a client held it.
const Large = 100 << 20

// Faults is the table. elsewhere is the base URL of a server on another port
// that has the same content, or may as well answer nothing that is right.
func Faults(elsewhere string) []Case {
	var cases []Case
	for _, on := range []Target{OnTag, OnManifest, OnConfig, OnLayer} {
		for _, c := range slices.Concat(refusals(), breaks(on), transports(elsewhere)) {
			c.On = on
			cases = append(cases, c)
		}
	}
	return slices.Concat(cases, documentFaults(), blobFaults(), rangeFaults(), tokenFaults())
}

func one(name string, faults ...Fault) Case { return Case{Name: name, Faults: faults} }

// on gives cases their target.
func on(t Target, cases ...Case) []Case {
	for i := range cases {
		cases[i].On = t
	}
	return cases
}

// refusals are answers that say no, now or for ever.
func refusals() []Case {
	return []Case{
		one("400", Fault{Status: http.StatusBadRequest}),
		one("401", Fault{Status: http.StatusUnauthorized}),
		one("403", Fault{Status: http.StatusForbidden}),
		one("404", Fault{Status: http.StatusNotFound}),
		one("418", Fault{Status: http.StatusTeapot}),
		one("204", Fault{Status: http.StatusNoContent}),
		one("429 once", Fault{Status: http.StatusTooManyRequests, RetryAfter: "0", Times: 1}),
		one("429 for an hour", Fault{Status: http.StatusTooManyRequests, RetryAfter: "3600"}),
		one("429 for a time nobody can read", Fault{Status: http.StatusTooManyRequests, RetryAfter: "soon", Times: 1}),
		one("429 for longer than time goes", Fault{Status: http.StatusTooManyRequests, RetryAfter: "99999999999999999999", Times: 1}),
		one("500", Fault{Status: http.StatusInternalServerError}),
		one("503 once", Fault{Status: http.StatusServiceUnavailable, Times: 1}),
		one("503 with a large text", Fault{Status: http.StatusServiceUnavailable, Length: Large,
			Stream: Filled(`{"errors":[{"code":"UNAVAILABLE","message":"`, 'x', Large)}),
	}
}

// breaks are connections that end or stand still.
func breaks(on Target) []Case {
	after := int64(100)
	if on == OnLayer {
		after = 100_000
	}
	return []Case{
		one("cut before the header, once", Fault{Raw: Filled("", 0, 0), Times: 1}),
		one("cut before the first byte, once", Fault{Cut: true, Times: 1}),
		one("cut, once", Fault{Cut: true, After: after, Times: 1}),
		one("cut", Fault{Cut: true, After: after}),
		one("stall, once", Fault{Stall: true, After: after, Times: 1}),
		one("stall", Fault{Stall: true, After: after}),
		one("no answer, once", Fault{Mute: true, Times: 1}),
		one("no answer", Fault{Mute: true}),
	}
}

// transports are faults of HTTP and below.
func transports(elsewhere string) []Case {
	return []Case{
		one("not HTTP", Fault{Raw: Filled("SSH-2.0-OpenSSH_9.6\r\n", '\n', 64)}),
		one("a header without end", Fault{Raw: Filled("HTTP/1.1 200 OK\r\nX: ", 'x', Large)}),
		one("informational answers without end", Fault{Raw: informational}),
		one("redirect to itself", Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"?again"}}}),
		one("redirect to nowhere", Fault{Status: http.StatusTemporaryRedirect}),
		one("redirect to a file", Fault{Redirect: "file:///etc/passwd"}),
		one("redirect elsewhere", Fault{Redirect: elsewhere}),
		one("length too large", Fault{Length: Large}),
		one("length too small", Fault{Length: 10}),
		one("gzip that is none", Fault{Header: http.Header{"Content-Encoding": {"gzip"}}}),
		one("another digest in the header", Fault{Header: http.Header{"Docker-Content-Digest": {"sha256:" + string(bytes.Repeat([]byte{'0'}, 64))}}}),
	}
}

func informational() io.Reader {
	return bytes.NewReader(bytes.Repeat([]byte("HTTP/1.1 103 Early Hints\r\n\r\n"), 10_000))
}

// documentFaults are wrong manifests and configs.
func documentFaults() []Case {
	json := http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}
	large := Filled(`{"schemaVersion":2,"annotations":{"a":"`, 'a', Large)
	page := func([]byte) []byte { return []byte("<!DOCTYPE html><title>Log in to this network</title>") }
	var cases []Case
	for _, t := range []Target{OnTag, OnManifest, OnConfig} {
		cases = append(cases, on(t,
			one("100 MB", Fault{Stream: large, Header: json}),
			one("100 MB, announced", Fault{Stream: large, Length: Large, Header: json}),
			one("100 MB of blanks", Fault{Stream: Filled("", ' ', Large), Header: json}),
			one("nothing", Fault{Edit: func([]byte) []byte { return nil }}),
			one("a page of HTML", Fault{Edit: page, Header: http.Header{"Content-Type": {"text/html"}}}),
			one("nested too deeply", Fault{Edit: func([]byte) []byte { return bytes.Repeat([]byte("["), 1<<20) }}),
			one("the first half", Fault{Edit: firstHalf}),
		)...)
	}
	for _, t := range []Target{OnManifest, OnConfig} {
		cases = append(cases, on(t,
			one("one bit", Fault{Edit: flip(0.5)}),
			one("a blank more", Fault{Edit: func(b []byte) []byte { return append(b, ' ') }}),
		)...)
	}
	return append(cases, on(OnTag,
		one("text as its type", Fault{Header: http.Header{"Content-Type": {"text/plain"}}}),
		one("no type", Fault{Header: http.Header{"Content-Type": nil}}),
	)...)
}

// blobFaults are layers that are not what they should be.
func blobFaults() []Case {
	const part = 32 << 10
	return on(OnLayer,
		one("first bit", Fault{Edit: flip(0)}),
		one("middle bit", Fault{Edit: flip(0.5)}),
		one("last bit", Fault{Edit: flip(1)}),
		one("a part repeated", Fault{Edit: func(b []byte) []byte { copy(b[part:2*part], b[:part]); return b }}),
		one("a part twice", Fault{Edit: func(b []byte) []byte { return slices.Insert(b, part, b[:part]...) }}),
		one("a part twice, no length", Fault{Chunked: true, Edit: func(b []byte) []byte { return slices.Insert(b, part, b[:part]...) }}),
		one("parts in another order", Fault{Edit: func(b []byte) []byte { return slices.Concat(b[part:2*part], b[:part], b[2*part:]) }}),
		one("zeros", Fault{Edit: func(b []byte) []byte { clear(b); return b }}),
		one("the first half", Fault{Edit: firstHalf}),
		one("the first half, no length", Fault{Edit: firstHalf, Chunked: true}),
		one("nothing", Fault{Edit: func([]byte) []byte { return nil }, Chunked: true}),
		one("no end", Fault{Stream: Filled("", 0, Large)}),
		one("a page of HTML", Fault{Edit: func([]byte) []byte { return []byte("<!DOCTYPE html><title>Log in</title>") }, Chunked: true}),
		one("cut at the last byte, once", Fault{Cut: true, After: -1, Times: 1}),
	)
}

// rangeFaults come when a cut blob is asked for from where it was cut.
func rangeFaults() []Case {
	cut := Fault{Cut: true, After: 100_000, Times: 1}
	return on(OnLayer,
		one("range ignored", cut, Fault{IgnoreRange: true}),
		one("range ignored, no length", cut, Fault{IgnoreRange: true, Chunked: true}),
		one("range refused", cut, Fault{Status: http.StatusRequestedRangeNotSatisfiable}),
		one("another range", cut, Fault{Header: http.Header{"Content-Range": {"bytes 5-10/20"}}}),
		one("range without a name", cut, Fault{Header: http.Header{"Content-Range": nil}}),
		one("other bytes for the range", cut, Fault{Shift: -50_000}),
		one("another blob for the range", cut, Fault{Edit: flip(0.9)}),
		one("range of more than there is", cut, Fault{Stream: Filled("", 0, Large), Status: http.StatusPartialContent,
			Header: http.Header{"Content-Range": {"bytes 100000-104857599/104857600"}}}),
		one("half of it, not asked for", Fault{Status: http.StatusPartialContent, Stream: Filled("", 0, 1000),
			Header: http.Header{"Content-Range": {"bytes 1000-1999/2000"}}}),
	)
}

// tokenFaults are about the server that gives tokens, where there is one.
func tokenFaults() []Case {
	return on(OnToken,
		one("401", Fault{Status: http.StatusUnauthorized}),
		one("500", Fault{Status: http.StatusInternalServerError}),
		one("503 once", Fault{Status: http.StatusServiceUnavailable, Times: 1}),
		one("100 MB", Fault{Stream: Filled(`{"token":"`, 'a', Large)}),
		one("100 MB header", Fault{Raw: Filled("HTTP/1.1 200 OK\r\nX: ", 'x', Large)}),
		one("no JSON", Fault{Edit: func([]byte) []byte { return []byte("token") }}),
		one("no token", Fault{Edit: func([]byte) []byte { return []byte("{}") }}),
		one("another token", Fault{Edit: func([]byte) []byte { return []byte(`{"token":"forged"}`) }}),
		one("cut, once", Fault{Cut: true, After: 5, Times: 1}),
		one("stall, once", Fault{Stall: true, After: 5, Times: 1}),
		one("stall", Fault{Stall: true, After: 5}),
		one("no answer, once", Fault{Mute: true, Times: 1}),
		one("redirect to itself", Fault{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"?again"}}}),
	)
}

func firstHalf(b []byte) []byte { return b[:len(b)/2] }

// flip changes one bit at a place between 0, the first byte, and 1, the last.
func flip(at float64) func([]byte) []byte {
	return func(b []byte) []byte {
		b[int(at*float64(len(b)-1))] ^= 1
		return b
	}
}
