// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/kbs/resource"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const adminToken = "eyJ.ADMIN-SECRET.sig"

// recorder answers with the statuses it is given, then 200, and keeps what it
// was asked.
type recorder struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
	body  string
}

func newRecorder(t *testing.T, statuses ...int) *recorder {
	t.Helper()
	r := &recorder{body: kbsError("X", `"refused `+adminToken+`"`)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked = append(r.asked, fmt.Sprintf("%s %s %s %q %q %s", req.Method, req.RequestURI,
			req.Header.Get("Authorization"), req.Header.Get("If-None-Match"), req.Header.Get("Content-Type"), b))
		if n := len(r.asked); n <= len(statuses) {
			w.WriteHeader(statuses[n-1])
			_, _ = io.WriteString(w, r.body)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func newTestAdmin(t *testing.T, url string) *Admin {
	t.Helper()
	a, err := NewAdmin(url, adminToken+"\n", AdminOptions{Deadline: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	a := newTestAdmin(t, r.URL)
	id := resource.ID{Repository: "default", Type: "key", Tag: "1"}
	rego := []byte("package policy\ndefault allow := false\n")
	policy := base64.RawURLEncoding.EncodeToString(rego)
	for _, err := range []error{
		a.PutResource(t.Context(), id, []byte{0xff, 0}, PutOptions{}),
		a.PutResource(t.Context(), id, []byte("k"), PutOptions{Overwrite: true}),
		a.DeleteResource(t.Context(), id),
		a.SetResourcePolicy(t.Context(), rego),
		a.SetAttestationPolicy(t.Context(), "default_cpu", rego),
		a.SetReferenceValues(t.Context(), map[string]any{"svn": []string{"1"}}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	const auth = "Bearer " + adminToken
	want := []string{
		"POST /kbs/v0/resource/default/key/1 " + auth + ` "*" "application/octet-stream" ` + "\xff\x00",
		"POST /kbs/v0/resource/default/key/1 " + auth + ` "" "application/octet-stream" k`,
		"DELETE /kbs/v0/resource/default/key/1 " + auth + ` "" "" `,
		"POST /kbs/v0/resource-policy " + auth + ` "" "application/json" {"policy":"` + policy + `"}`,
		"POST /kbs/v0/attestation-policy " + auth + ` "" "application/json" {"policy":"` + policy + `","policy_id":"default_cpu"}`,
		"POST /kbs/v0/reference-value " + auth + ` "" "application/json" {"payload":"` +
			base64.StdEncoding.EncodeToString([]byte(`{"svn":["1"]}`)) + `","type":"sample","version":"0.1.0"}`,
	}
	if d := cmp.Diff(want, r.asked); d != "" {
		t.Error(d)
	}
}

func TestAdminErrors(t *testing.T) {
	t.Parallel()
	id := resource.ID{Repository: "default", Type: "key", Tag: "1"}
	for _, c := range []struct {
		status int
		class  error
		want   string
	}{
		{401, errdefs.ErrUnauthenticated, "next: make a new admin token"},
		{403, errdefs.ErrPermissionDenied, "next: make a new admin token"},
		{404, errdefs.ErrNotFound, "404 X: refused [redacted]"},
		{412, errdefs.ErrAlreadyExists, "next: choose another name"},
		{413, errdefs.ErrInvalidArgument, ""},
		{500, errdefs.ErrUnavailable, ""}, // it may have been done, so not again
	} {
		r := newRecorder(t, c.status)
		err := newTestAdmin(t, r.URL).PutResource(t.Context(), id, nil, PutOptions{})
		checkError(t, err, r.URL, c.class, []string{"put kbs:///default/key/1", c.want})
		if len(r.asked) != 1 {
			t.Errorf("status %d: %d requests", c.status, len(r.asked))
		}
	}
	r := newRecorder(t, 500) // it changes nothing, so again
	if _, err := newTestAdmin(t, r.URL).ResourcePolicy(t.Context()); err != nil || len(r.asked) != 2 {
		t.Errorf("get of a broken service: %v after %d requests", err, len(r.asked))
	}
	r = newRecorder(t, 503, 429)
	if err := newTestAdmin(t, r.URL).DeleteResource(t.Context(), id); err != nil || len(r.asked) != 3 {
		t.Errorf("busy service: %v after %d requests", err, len(r.asked))
	}
}

func second(_ []byte, err error) error { return err }

func TestAdminInput(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	a := newTestAdmin(t, r.URL)
	for _, err := range []error{
		a.PutResource(t.Context(), resource.ID{Repository: "..", Type: "a", Tag: "b"}, nil, PutOptions{}),
		a.DeleteResource(t.Context(), resource.ID{}),
		a.SetReferenceValues(t.Context(), map[string]any{"x": make(chan int)}),
		second(a.AttestationPolicy(t.Context(), "")),
		second(a.AttestationPolicy(t.Context(), "../resource")),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("error %v", err)
		}
	}
	if len(r.asked) != 0 {
		t.Errorf("asked %q", r.asked)
	}
	for _, token := range []string{"", " \n", "a b", "a\r\nX-Y: z", "ä"} {
		if _, err := NewAdmin(r.URL, token, AdminOptions{}); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "X-Y") {
			t.Errorf("token %q: %v", token, err)
		}
	}
	for _, answer := range []string{`{}`, `["default/key"]`, `nonsense`} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
		if _, err := newTestAdmin(t, s.URL).ListResources(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("list %s: %v", answer, err)
		}
		s.Close()
	}
	const far = "http://kbs.example:8080"
	if _, err := NewAdmin(far, adminToken, AdminOptions{}); !errors.Is(err, ErrPlainHTTP) || !errdefs.IsInvalidArgument(err) {
		t.Errorf("plain http: %v", err)
	}
	if _, err := NewAdmin(far, adminToken, AdminOptions{PlainHTTP: true}); err != nil {
		t.Error(err)
	}
	if s := fmt.Sprintf("%v %+v %#v", a, a, a); strings.Contains(s, "SECRET") {
		t.Errorf("the token is shown in %q", s)
	}
}

// TestRedirectsAreNotFollowed sends nothing to the host that an answer names.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	other := newRecorder(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(s.Close)
	id := resource.ID{Repository: "default", Type: "key", Tag: "1"}
	err := newTestAdmin(t, s.URL).PutResource(t.Context(), id, []byte("k"), PutOptions{})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "redirects are not followed") {
		t.Errorf("error %v", err)
	}
	if len(other.asked) > 0 {
		t.Errorf("the other host was asked %q", other.asked)
	}
}
