// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Fault is how the registry misbehaves for some requests. The fields are
// alternatives, the last two apart; the first that is set counts.
type Fault struct {
	// Status is the answer's status instead of the registry's answer.
	Status int
	// Drop closes the connection without an answer.
	Drop bool
	// Leave closes the connection and the whole registry with it, until
	// FaultProxy.Back.
	Leave bool
	// CutAfter closes the connection after so many bytes of the body.
	CutAfter int64
	// Body replaces the body. The answer is then whole and self-consistent,
	// whatever the request's range.
	Body func(body []byte) []byte

	// Skip lets so many requests pass first.
	Skip int
	// Times limits the fault to so many requests; 0 = until Clear.
	Times int
}

// Request is one request that the registry was asked.
type Request struct {
	Method, Path string
}

// FaultProxy stands in front of a registry and injects faults.
type FaultProxy struct {
	addr    string
	forward *httputil.ReverseProxy

	mu       sync.Mutex // guards all below
	faults   map[string]*Fault
	requests []Request
	server   *http.Server
	served   chan struct{} // closed when server has ended
}

// newFaultProxy starts a proxy for the registry at addr.
func newFaultProxy(ctx context.Context, addr string) (*FaultProxy, error) {
	p := &FaultProxy{faults: make(map[string]*Fault)}
	p.forward = &httputil.ReverseProxy{
		FlushInterval: -1, // a cut comes after the bytes before it
		ErrorLog:      log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: addr})
			r.Out.Host = r.In.Host // the registry's redirects stay with the proxy
		},
		ModifyResponse: p.modify,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	if err := p.listen(ctx, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *FaultProxy) listen(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // ends by Close alone
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addr, p.server, p.served = l.Addr().String(), server, served
	return nil
}

// Host is the proxy's host:port.
func (p *FaultProxy) Host() string { return p.addr }

// Set injects fault f into every GET request whose path ends with suffix, such as a
// digest. It replaces an earlier fault of the same suffix.
func (p *FaultProxy) Set(suffix string, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[suffix] = &f
}

// Clear takes all faults away.
func (p *FaultProxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.faults)
}

// Away closes the registry's port: connections are refused.
func (p *FaultProxy) Away() error {
	p.mu.Lock()
	server, served := p.server, p.served
	p.server = nil
	p.mu.Unlock()
	if server == nil {
		return nil
	}
	err := server.Close()
	<-served
	return err
}

// Back opens the port that Away, or a fault's Leave, closed.
func (p *FaultProxy) Back(ctx context.Context) error { return p.listen(ctx, p.addr) }

// Close ends the proxy.
func (p *FaultProxy) Close() error { return p.Away() }

// Requests lists the requests so far, oldest first, and forgets them.
func (p *FaultProxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.requests
	p.requests = nil
	return all
}

func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.match(r)
	switch {
	case f == nil:
		p.forward.ServeHTTP(w, r)
	case f.Status != 0:
		w.WriteHeader(f.Status)
	case f.Drop:
		drop(w)
	case f.Leave:
		// Away waits for this very request, so somebody else has to call it.
		go p.Away() //nolint:errcheck // nobody is there to tell; the test sees it
		<-r.Context().Done()
		drop(w)
	default:
		if f.Body != nil {
			r.Header.Del("Range")
		}
		p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
	}
}

// drop closes a request's connection without an answer.
func drop(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // it is closed already
	}
	_ = conn.Close()
}

type faultKey struct{}

// match notes the request and returns the fault that it meets, nil for none.
func (p *FaultProxy) match(r *http.Request) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, Request{Method: r.Method, Path: r.URL.Path})
	if r.Method != http.MethodGet {
		return nil
	}
	for suffix, f := range p.faults {
		if !strings.HasSuffix(r.URL.Path, suffix) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			return nil
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				delete(p.faults, suffix)
			}
		}
		return f
	}
	return nil
}

// modify applies the faults that change the registry's answer.
func (p *FaultProxy) modify(resp *http.Response) error {
	f, ok := resp.Request.Context().Value(faultKey{}).(*Fault)
	if !ok || resp.StatusCode >= http.StatusMultipleChoices {
		return nil
	}
	if f.Body == nil {
		resp.Body = &cutBody{ReadCloser: resp.Body, left: f.CutAfter}
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	body = f.Body(slices.Clone(body))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), resp.Body}
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// cutBody fails after some bytes, which makes the proxy abort the connection.
type cutBody struct {
	io.ReadCloser
	left int64
}

var errCut = errors.New("the fault proxy cuts here")

func (c *cutBody) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errCut
	}
	if int64(len(b)) > c.left {
		b = b[:c.left]
	}
	n, err := c.ReadCloser.Read(b)
	c.left -= int64(n)
	return n, err
}
