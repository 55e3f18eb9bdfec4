// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/snapshotter/cache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a cache that is served.
type node struct {
	t      testing.TB
	cache  *cache.Cache
	url    string
	root   string
	client *http.Client
	stop   func()
}

// start serves the cache in root for registry hosts that speak plain HTTP.
func start(t testing.TB, root string, opts cache.Options, hosts ...string) *node {
	t.Helper()
	for _, h := range hosts {
		opts.Registries = append(opts.Registries, "http://"+h)
	}
	if opts.RetryDelay == 0 {
		opts.RetryDelay = time.Millisecond
	}
	c, err := cache.Open(root, opts)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c)
	n := &node{t: t, cache: c, url: server.URL, root: root, client: &http.Client{Transport: &http.Transport{}}}
	n.stop = sync.OnceFunc(func() {
		n.client.CloseIdleConnections()
		server.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// reply is what a guest got; err is of the body.
type reply struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (n *node) ask(method, path string, header ...string) reply {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), method, n.url+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, b, err}
}

func blobPath(repository string, d digest.Digest) string {
	return "/v2/" + repository + "/blobs/" + d.String()
}

// get reads a blob, whole or the range of header.
func (n *node) get(d digest.Digest, header ...string) reply {
	n.t.Helper()
	return n.ask(http.MethodGet, blobPath("a/b", d), header...)
}

// begin asks for a blob from byte first on. The body is closed with the test.
func (n *node) begin(d digest.Digest, first int) io.Reader {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), http.MethodGet, n.url+blobPath("a/b", d), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if first > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", first))
	}
	resp, err := n.client.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp.Body
}

// wants reads a blob and compares it.
func (n *node) wants(d digest.Digest, want []byte) {
	n.t.Helper()
	if r := n.get(d); r.status != http.StatusOK || r.err != nil || !bytes.Equal(r.body, want) {
		n.t.Errorf("%s: status %d, %d bytes, error %v", d, r.status, len(r.body), r.err)
	}
}

// files lists what in the cache's folder begins with prefix.
func (n *node) files(prefix string) []string {
	n.t.Helper()
	list, err := filepath.Glob(n.root + "/" + prefix + "*")
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// metrics parses what the cache writes with Prometheus' own parser.
func (n *node) metrics() map[string]float64 {
	n.t.Helper()
	w := httptest.NewRecorder()
	n.cache.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	got := make(map[string]float64)
	for name, f := range families {
		if !strings.HasPrefix(name, "coffer_cache_") || f.GetHelp() == "" || f.GetType().String() == "UNTYPED" {
			n.t.Errorf("%s: help %q, type %s", name, f.GetHelp(), f.GetType())
		}
		for _, m := range f.GetMetric() {
			key := strings.TrimPrefix(name, "coffer_cache_")
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return got
}

func (n *node) counts(want map[string]float64) {
	n.t.Helper()
	got := n.metrics()
	for key, value := range want {
		if v, found := got[key]; !found || v != value {
			n.t.Errorf("%s is %v (found: %v), want %v", key, v, found, value)
		}
	}
}

// push puts an image with random layers of these sizes into r, as a/b:1.
func push(t testing.TB, r *imagetest.Registry, sizes ...int) imagetest.Pushed {
	t.Helper()
	image := imagetest.Image{}
	for _, size := range sizes {
		image.Layers = append(image.Layers, imagetest.Layer{Random: size})
	}
	return r.Push(t, "a/b:1", image)
}

// Sixteen guests that pull one image at once get every blob, and each leaves
// the registry once.
func TestSixteenGuests(t *testing.T) {
	t.Parallel()
	const guests = 16
	r := imagetest.New(t)
	key := imagetest.NewKey(t, "kbs:///default/key/1")
	layer := imagetest.Layer{Random: 3 << 20, Compression: imagetest.Gzip, Key: &key}
	p := r.Push(t, "a/b:1", imagetest.Image{Layers: []imagetest.Layer{layer, layer, layer, {Random: 10}}})
	n := start(t, t.TempDir(), cache.Options{}, r.Host())
	var wg sync.WaitGroup
	pull := func() {
		for _, l := range p.Layers {
			wg.Go(func() { n.wants(l.Digest, l.Blob) })
		}
	}
	for range guests {
		pull()
	}
	wg.Wait()
	r.Settle()
	total := 0
	for _, l := range p.Layers {
		total += len(l.Blob)
		if got := r.Requests(l.Digest.String()); len(got) != 1 || got[0].Range != "" || got[0].Served != int64(len(l.Blob)) {
			t.Errorf("the registry was asked for %s: %+v", l.Digest, got)
		}
	}
	m := n.metrics()
	if shared := m["requests_total shared"] + m["requests_total hit"]; shared != float64((guests-1)*len(p.Layers)) {
		t.Errorf("%v requests were no miss", shared)
	}
	n.counts(map[string]float64{
		"requests_total miss": float64(len(p.Layers)), "fetched_bytes_total": float64(total), "served_bytes_total": float64(guests * total),
		"blobs": float64(len(p.Layers)), "bytes": float64(total), "downloads": 0, "limit_bytes": cache.DefaultMaxBytes, "wrong_total": 0,
	})
	// A restart keeps them, and believes them when it has read them.
	n.stop()
	r.Away()
	n = start(t, n.root, cache.Options{}, r.Host())
	pull()
	wg.Wait()
	pull()
	wg.Wait()
	n.counts(map[string]float64{"requests_total hit": float64(len(p.Layers) * 2), "fetched_bytes_total": 0})
	if left := n.files("partial/"); len(left) != 0 {
		t.Errorf("partial blobs: %v", left)
	}
}

// gated is a registry that sends a blob of which everything behind the first
// half waits for the gate.
type gated struct {
	blob    []byte
	digest  digest.Digest
	gate    chan struct{}
	chunked bool
	host    string
}

func newGated(t testing.TB, size int) *gated {
	t.Helper()
	g := &gated{blob: make([]byte, size), gate: make(chan struct{})}
	_, _ = rand.Read(g.blob)
	g.digest = digest.FromBytes(g.blob)
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	g.host = strings.TrimPrefix(server.URL, "http://")
	return g
}

func (g *gated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest := g.blob
	if header := r.Header.Get("Range"); header != "" {
		var first int
		_, _ = fmt.Sscanf(header, "bytes=%d-", &first)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(g.blob)-1, len(g.blob)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(rest[first:])
		return
	}
	if !g.chunked {
		w.Header().Set("Content-Length", fmt.Sprint(len(g.blob)))
	}
	_, _ = w.Write(rest[:len(rest)/2])
	_ = http.NewResponseController(w).Flush()
	select {
	case <-g.gate:
		_, _ = w.Write(rest[len(rest)/2:])
	case <-r.Context().Done():
	}
}

// What has arrived of a blob is sent before the rest is there, also to who comes
// later and to who wants a part.
func TestSharedWhileItArrives(t *testing.T) {
	t.Parallel()
	for _, chunked := range []bool{false, true} {
		g := newGated(t, 1<<20)
		g.chunked = chunked
		n := start(t, t.TempDir(), cache.Options{}, g.host)
		half := len(g.blob) / 2
		var bodies []io.Reader
		for i := range 3 {
			first := 0
			if i == 2 && !chunked {
				first = 1000
			}
			body := n.begin(g.digest, first)
			got := make([]byte, half-first-1)
			if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, g.blob[first:half-1]) {
				t.Fatalf("the first half is wrong: %v", err)
			}
			bodies = append(bodies, body)
		}
		if !chunked {
			if r := n.ask(http.MethodHead, blobPath("a/b", g.digest)); r.status != http.StatusOK || r.header.Get("Content-Length") != fmt.Sprint(len(g.blob)) {
				t.Errorf("head: %+v", r)
			}
		}
		n.counts(map[string]float64{"downloads": 1, "readers": 3})
		close(g.gate)
		for _, body := range bodies {
			rest, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(rest, g.blob[half-1:]) {
				t.Errorf("chunked %v: the rest is wrong: %d bytes, %v", chunked, len(rest), err)
			}
		}
		n.wants(g.digest, g.blob)
		n.counts(map[string]float64{"requests_total miss": 1, "bytes": float64(len(g.blob))})
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 5000)
	l := p.Layers[0]
	size := len(l.Blob)
	big := start(t, t.TempDir(), cache.Options{}, r.Host())
	big.wants(l.Digest, l.Blob)
	small := start(t, t.TempDir(), cache.Options{MaxBytes: 100}, r.Host()) // passes it through
	for header, want := range map[string][2]int{
		"bytes=0-": {0, size}, "bytes=10-19": {10, 20}, "bytes=100-99999": {100, size}, "bytes=-7": {size - 7, size}, fmt.Sprintf("bytes=%d-", size-1): {size - 1, size},
	} {
		for _, n := range []*node{big, small} {
			got := n.get(l.Digest, "Range", header)
			content := fmt.Sprintf("bytes %d-%d/%d", want[0], want[1]-1, size)
			if got.status != http.StatusPartialContent || got.header.Get("Content-Range") != content || !bytes.Equal(got.body, l.Blob[want[0]:want[1]]) || got.err != nil {
				t.Errorf("%s: %d %v, %d bytes, %v", header, got.status, got.header, len(got.body), got.err)
			}
		}
	}
	if got := big.get(l.Digest, "Range", fmt.Sprintf("bytes=%d-", size)); got.status != http.StatusRequestedRangeNotSatisfiable || got.header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
		t.Errorf("behind the end: %d %v", got.status, got.header)
	}
	if got := small.get(l.Digest, "Range", fmt.Sprintf("bytes=%d-", size)); got.status != http.StatusNotFound {
		t.Errorf("behind the end: %d", got.status)
	}
	for _, n := range []*node{big, small} {
		if got := n.ask(http.MethodHead, blobPath("a/b", l.Digest), "Range", "bytes=10-19"); got.status != http.StatusPartialContent || got.header.Get("Content-Length") != "10" {
			t.Errorf("head of a range: %+v", got)
		}
		got := n.ask(http.MethodHead, blobPath("a/b", l.Digest))
		if got.status != http.StatusOK || got.header.Get("Content-Length") != fmt.Sprint(size) || got.header.Get("Docker-Content-Digest") != l.Digest.String() {
			t.Errorf("head: %+v", got)
		}
	}
	small.counts(map[string]float64{"blobs": 0, "bytes": 0})
	if left := small.files("partial/"); len(left) != 0 {
		t.Errorf("partial blobs: %v", left)
	}
	// Remembered: the registry is not asked twice for a blob that has no room.
	before := len(r.Requests(l.Digest.String()))
	small.wants(l.Digest, l.Blob)
	if n := len(r.Requests(l.Digest.String())) - before; n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// Everything but blobs of the registries that are allowed is for the registry.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	r, other := imagetest.New(t), imagetest.New(t)
	p := push(t, r, 100)
	d := p.Layers[0].Digest
	n := start(t, t.TempDir(), cache.Options{}, r.Host())
	for path, want := range map[string]int{
		"/v2/": 200, "/v2": 200, "/": 404, "/metrics": 404,
		"/v2/a/b/manifests/1":                                404,
		"/v2/a/b/manifests/" + p.Manifest.Digest.String():    404,
		"/v2/a/b/tags/list":                                  404,
		"/v2/a/b/blobs/uploads/":                             404,
		blobPath("a/b", d) + "?ns=" + other.Host():           404,
		blobPath("a/b", d) + "?ns=127.0.0.1":                 404,
		blobPath("a/b", d) + "?ns=" + r.Host() + "%2F..":     404,
		blobPath("a/b", d) + "?ns=" + r.Host():               200,
		blobPath("a/b", digest.FromString("not there")):      404,
		blobPath("a/B", digest.FromString("not there, too")): 404,
	} {
		if got := n.ask(http.MethodGet, path); got.status != want || want == 404 && !strings.Contains(string(got.body), `{"errors":[{"code":"`) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if got := n.ask(method, blobPath("a/b", d)); got.status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, got.status)
		}
	}
	// A body that never comes is not waited for.
	server := strings.TrimPrefix(n.url, "http://")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\n\r\n", blobPath("a/b", d), server); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(conn); !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") { // the connection may be reset
		t.Errorf("with a body: %s", answer)
	}
	if len(r.Requests("1"))+len(other.Requests(d.String())) != 0 {
		t.Error("a registry was asked for more than blobs, or one that is not allowed")
	}
	two := start(t, t.TempDir(), cache.Options{}, r.Host(), other.Host())
	if got := two.get(d); got.status != http.StatusNotFound {
		t.Errorf("without ns, with two registries: %d", got.status)
	}
	if got := two.ask(http.MethodGet, blobPath("a/b", d)+"?ns="+r.Host()); got.status != http.StatusOK {
		t.Errorf("with ns: %d", got.status)
	}
	// The second source of a digest is asked where the first has failed.
	if got := two.ask(http.MethodGet, blobPath("c", p.ConfigDigest)+"?ns="+other.Host()); got.status != http.StatusNotFound {
		t.Errorf("elsewhere: %d", got.status)
	}
	if got := two.ask(http.MethodGet, blobPath("a/b", p.ConfigDigest)+"?ns="+r.Host()); got.status != http.StatusOK {
		t.Errorf("a failure of one source is one of another: %d", got.status)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, opts := range map[string]cache.Options{
		"is not host": {Registries: []string{"https://r.example"}},
		"host[:port]": {Registries: []string{"r.example/a"}},
		"negative":    {MaxBytes: -1},
	} {
		if _, err := cache.Open(dir, opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	start(t, dir, cache.Options{})
	if _, err := cache.Open(dir, cache.Options{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(file, cache.Options{}); err == nil {
		t.Error("opened a file")
	}
}
