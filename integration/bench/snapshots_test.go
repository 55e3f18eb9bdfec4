// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStacks(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 4, 500, 10000} {
		list := stacks(n)
		layers, seen := 0, map[string]bool{}
		for i, s := range list {
			layers += len(s)
			for _, chain := range s {
				seen[chain.String()] = true
			}
			if last := i == len(list)-1; !last && (len(s) < 5 || len(s) > 10) {
				t.Errorf("an image of %d layers", len(s))
			}
		}
		// The containers of the last image fill up what is left.
		if most := layers + len(list)*containersPerImage; layers > n || most < n || len(seen) != layers {
			t.Errorf("%d snapshots: %d layers of %d names, up to %d in all", n, layers, len(seen), most)
		}
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	s := series{}
	for i := range 200 {
		s = append(s, float64(200-i))
	}
	for p, want := range map[float64]float64{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := s.percentile(p); got != want {
			t.Errorf("%g: got %g, want %g", p, got, want)
		}
	}
	if !math.IsNaN(series(nil).percentile(99)) {
		t.Error("nothing has a percentile")
	}
}

func TestCounter(t *testing.T) {
	t.Parallel()
	c := &counter{Handler: http.NotFoundHandler(), left: map[string]int{}}
	for _, path := range []string{"/v2/bench/a/blobs/x", "/v2/bench/b/blobs/x", "/v2/bench/a/blobs/y", "/v2/bench/a/manifests/x"} {
		c.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/left", nil))
	var got map[string]int
	if err := json.NewDecoder(w.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"x": 2, "y": 1}, got); diff != "" {
		t.Error(diff)
	}
}

// Two connections together get what a link has, and no more.
func TestLink(t *testing.T) {
	t.Parallel()
	const rate, each = 16 << 20, 1 << 20
	raw, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{Listener: raw, rate: rate}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, each))
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	began := time.Now()
	done := make(chan error)
	for range 2 {
		go func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+raw.Addr().String(), nil)
			if err == nil {
				var resp *http.Response
				if resp, err = http.DefaultClient.Do(req); err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}
			done <- err
		}()
	}
	errs := []error{<-done, <-done}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if took, least := time.Since(began), time.Second*2*each/rate-linkCredit; took < least {
		t.Errorf("took %s, at least %s", took, least)
	}
}
