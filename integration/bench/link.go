// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// linkPart is how much one connection sends before others have their turn.
	linkPart = 64 << 10
	// linkCredit is how long a link may have been idle for its sender to catch up:
	// sleeps are not exact.
	linkCredit = 2 * time.Millisecond
)

// link is a listener whose connections share so many bytes a second on the way
// out.
type link struct {
	net.Listener
	rate int64

	mu   sync.Mutex
	free time.Time // when what was taken so far has gone; guarded by mu
}

func (l *link) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &linkConn{c, l}, nil
}

// wait waits until n bytes more have gone.
func (l *link) wait(n int) {
	l.mu.Lock()
	now := time.Now()
	if idle := now.Add(-linkCredit); l.free.Before(idle) {
		l.free = idle
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	until := l.free
	l.mu.Unlock()
	<-time.After(until.Sub(now))
}

type linkConn struct {
	net.Conn
	link *link
}

func (c *linkConn) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		part := b[done:min(done+linkPart, len(b))]
		c.link.wait(len(part))
		n, err := c.Conn.Write(part)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// counter counts how often each blob leaves a registry, and tells at /left.
type counter struct {
	http.Handler

	mu   sync.Mutex
	left map[string]int // by digest; guarded by mu
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/left" {
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = json.NewEncoder(w).Encode(c.left) // whoever is gone needs none
		return
	}
	if _, blob, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
		c.mu.Lock()
		c.left[blob]++
		c.mu.Unlock()
	}
	c.Handler.ServeHTTP(w, r)
}
