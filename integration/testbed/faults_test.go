// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const blob = "0123456789"

// proxied starts a fault proxy before a server that answers with blob.
func proxied(t *testing.T) *FaultProxy {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(blob))
	}))
	t.Cleanup(server.Close)
	p, err := newFaultProxy(t.Context(), strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// get is "status body", or "error", of one request with a range of everything.
func get(ctx context.Context, p *FaultProxy, path string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Host()+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "no answer"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Sprintf("%d %s, cut", resp.StatusCode, body)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault Fault
		want  []string
	}{
		"status": {Fault{Status: 429}, []string{"429 ", "429 "}},
		"once":   {Fault{Status: 500, Times: 1}, []string{"500 ", "200 " + blob}},
		"second": {Fault{Status: 500, Skip: 1, Times: 1}, []string{"200 " + blob, "500 ", "200 " + blob}},
		"drop":   {Fault{Drop: true}, []string{"no answer"}},
		"leave":  {Fault{Leave: true}, []string{"no answer", "no answer"}},
		"cut":    {Fault{CutAfter: 4}, []string{"200 0123, cut"}},
		"body":   {Fault{Body: func(b []byte) []byte { return append(b, 'x') }}, []string{"200 " + blob + "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := proxied(t)
			p.Set("sha256:aa", c.fault)
			var got []string
			for range c.want {
				got = append(got, get(t.Context(), p, "/v2/x/blobs/sha256:aa"))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestFaultsEnd(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	p.Set("a", Fault{Status: 500})
	if got := get(t.Context(), p, "/b"); got != "200 "+blob {
		t.Errorf("a request that the fault is not for: %s", got)
	}
	p.Clear()
	if got := get(t.Context(), p, "/a"); got != "200 "+blob {
		t.Errorf("after Clear: %s", got)
	}
	if err := p.Away(); err != nil {
		t.Fatal(err)
	}
	if got := get(t.Context(), p, "/a"); got != "no answer" {
		t.Errorf("while away: %s", got)
	}
	if err := p.Back(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := get(t.Context(), p, "/a"); got != "200 "+blob {
		t.Errorf("when back: %s", got)
	}
	want := []Request{{"GET", "/b"}, {"GET", "/a"}, {"GET", "/a"}}
	if diff := cmp.Diff(want, p.Requests()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}
