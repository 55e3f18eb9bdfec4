// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbstest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/kbstest"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// sampleTEE is the client's side of the sample TEE.
type sampleTEE struct{}

func (sampleTEE) TEE() string { return "sample" }

func (sampleTEE) Evidence(_ context.Context, reportData []byte) ([]byte, error) {
	return json.Marshal(evidence.SampleEvidence{SVN: "1", ReportData: reportData})
}

func client(t *testing.T, s *kbstest.Server) *kbs.Client {
	t.Helper()
	c, err := kbs.NewClient(s.URL, sampleTEE{}, kbs.ClientOptions{CA: s.CA, Deadline: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestClient drives the real client through the whole protocol, once per
// transport.
func TestClient(t *testing.T) {
	t.Parallel()
	for _, tls := range []bool{false, true} {
		s := kbstest.New(t, kbstest.Options{Sample: true, TLS: tls})
		admin, err := kbs.NewAdmin(s.URL, s.AdminToken, kbs.AdminOptions{CA: s.CA})
		if err != nil {
			t.Fatal(err)
		}
		id := resource.ID{Repository: "default", Type: "key", Tag: "1"}
		secret := bytes.Repeat([]byte{0, 1, 255}, 1000)
		if err := admin.PutResource(t.Context(), id, secret, kbs.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := admin.PutResource(t.Context(), id, secret, kbs.PutOptions{}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("put twice: %v", err)
		}
		c := client(t, s)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				got, err := c.GetResource(t.Context(), "kbs:///default/key/1")
				if err != nil || !bytes.Equal(got, secret) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
		if s.Handshakes() != 1 {
			t.Errorf("%d handshakes", s.Handshakes())
		}
		if _, err := c.GetResource(t.Context(), "kbs:///default/key/none"); !errdefs.IsNotFound(err) {
			t.Errorf("absent: %v", err)
		}
		if err := admin.SetResourcePolicy(t.Context(), []byte("package policy\nallow := data.plugin == \"none\"\n")); err != nil {
			t.Error(err)
		}
		_, err = c.GetResource(t.Context(), "kbs:///default/key/1")
		if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "plugin to be none") {
			t.Errorf("denied: %v", err)
		}
		if s.Handshakes() != 2 { // the client asks once more, with a new appraisal
			t.Errorf("%d handshakes after a denial", s.Handshakes())
		}
		if err := admin.SetReferenceValues(t.Context(), map[string]any{"svn": []string{"2"}}); err != nil {
			t.Error(err)
		}
		if err := admin.SetAttestationPolicy(t.Context(), "default_cpu", []byte("package policy\ntrust_claims := {\"hardware\": 2}\n")); err != nil {
			t.Error(err)
		}
		if err := admin.DeleteResource(t.Context(), id); err != nil || s.Get("default/key/1") != nil {
			t.Errorf("delete: %v", err)
		}
	}
}

func TestClientMeetsRefusalAndAbsence(t *testing.T) {
	t.Parallel()
	refusing := kbstest.New(t, kbstest.Options{})
	_, err := client(t, refusing).GetResource(t.Context(), "kbs:///default/key/1")
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "sample evidence allowed") {
		t.Errorf("sample refused: %v", err)
	}
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("the key"))
	c := client(t, s)
	if _, err := c.GetResource(t.Context(), "kbs:///default/key/1"); err != nil {
		t.Fatal(err)
	}
	s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return true
	})
	if _, err := c.GetResource(t.Context(), "kbs:///default/key/1"); !errdefs.IsUnavailable(err) {
		t.Errorf("busy: %v", err)
	}
	s.Intercept(nil)
	if _, err := c.GetResource(t.Context(), "kbs:///default/key/1"); err != nil {
		t.Errorf("not busy any more: %v", err)
	}
}
