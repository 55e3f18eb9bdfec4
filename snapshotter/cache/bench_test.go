// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/snapshotter/cache"
)

// link is what all connections of a listener share: so many bytes a second.
type link struct {
	net.Listener
	rate int64 // 0 is as fast as it goes

	mu   sync.Mutex
	free time.Time // when what was taken so far has gone
}

func (l *link) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.rate == 0 {
		return c, err
	}
	return &linkConn{c, l}, nil
}

type linkConn struct {
	net.Conn
	link *link
}

func (c *linkConn) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		part := b[done:min(done+64<<10, len(b))]
		c.link.wait(len(part))
		n, err := c.Conn.Write(part)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// wait waits until n bytes more have gone.
func (l *link) wait(n int) {
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	until := l.free
	l.mu.Unlock()
	<-time.After(until.Sub(now))
}

// shelf serves blobs by digest and counts what leaves it.
type shelf struct {
	blobs map[string][]byte

	mu     sync.Mutex
	served map[string]int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	s.mu.Lock()
	s.served[name]++
	s.mu.Unlock()
	w.Header().Set("Content-Length", fmt.Sprint(len(s.blobs[name])))
	_, _ = w.Write(s.blobs[name])
}

// newShelf is a registry behind a link, with an image of so many layers.
func newShelf(tb testing.TB, rate int64, layers, size int) (*shelf, string) {
	tb.Helper()
	s := &shelf{blobs: make(map[string][]byte), served: make(map[string]int)}
	for range layers {
		b := make([]byte, size)
		_, _ = rand.Read(b)
		s.blobs[digest.FromBytes(b).String()] = b
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = &link{Listener: server.Listener, rate: rate}
	server.Start()
	tb.Cleanup(server.Close)
	return s, strings.TrimPrefix(server.URL, "http://")
}

// pull reads and checks all of an image, as one guest does.
func (s *shelf) pull(tb testing.TB, client *http.Client, url string) {
	var wg sync.WaitGroup
	for name := range s.blobs {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, url+"/v2/a/b/blobs/"+name, nil)
			if err != nil {
				tb.Error(err)
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				tb.Error(err)
				return
			}
			defer resp.Body.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, resp.Body); err != nil || digest.NewDigest(digest.SHA256, sum).String() != name {
				tb.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkGuests is 16 guests that pull one image of 4 layers at once, from the
// registry and through an empty cache: over a link of 1 Gbit/s that they share,
// and over one that has no limit. cpu-s/op is of guests, cache and registry, and
// guests hash what they read; leaves/op is how many blobs leave the registry.
func BenchmarkGuests(b *testing.B) {
	const guests, layers, size = 16, 4, 8 << 20
	for _, l := range []struct {
		name string
		rate int64
	}{{"1Gbit", 1e9 / 8}, {"loopback", 0}} {
		for _, cached := range []bool{false, true} {
			b.Run(fmt.Sprintf("link=%s/cached=%v", l.name, cached), func(b *testing.B) {
				registry, host := newShelf(b, l.rate, layers, size)
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: guests * layers}}
				defer client.CloseIdleConnections()
				b.SetBytes(guests * layers * size)
				began := cpu(b)
				for b.Loop() {
					url, stop := "http://"+host, func() {}
					if cached {
						n := start(b, b.TempDir(), cache.Options{}, host)
						url, stop = n.url, n.stop
					}
					var wg sync.WaitGroup
					for range guests {
						wg.Go(func() { registry.pull(b, client, url) })
					}
					wg.Wait()
					client.CloseIdleConnections()
					stop()
				}
				b.ReportMetric((cpu(b)-began).Seconds()/float64(b.N), "cpu-s/op")
				total := 0
				for name, n := range registry.served {
					if total += n; cached && n != b.N {
						b.Errorf("%s left the registry %d times in %d pulls", name, n, b.N)
					}
				}
				b.ReportMetric(float64(total)/float64(b.N), "leaves/op")
			})
		}
	}
}

// cpu is what this process has used.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
