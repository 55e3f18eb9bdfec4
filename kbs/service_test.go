// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
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

// sampleTEE is the sample TEE.
type sampleTEE struct{}

func (sampleTEE) TEE() string { return string(evidence.Sample) }

func (sampleTEE) Evidence(_ context.Context, reportData []byte) ([]byte, error) {
	return json.Marshal(evidence.SampleEvidence{SVN: "1", ReportData: reportData})
}

func newClient(t *testing.T, s *kbstest.Server) *kbs.Client {
	t.Helper()
	c, err := kbs.NewClient(s.URL, sampleTEE{}, kbs.ClientOptions{CA: s.CA, Deadline: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestService runs client and admin against the real service.
func TestService(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true, TLS: true})
	admin, err := kbs.NewAdmin(s.URL, s.AdminToken, kbs.AdminOptions{CA: s.CA})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	id := resource.ID{Repository: "default", Type: "key", Tag: "1"}
	if err := admin.PutResource(t.Context(), id, []byte("first"), kbs.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := admin.PutResource(t.Context(), id, []byte("second"), kbs.PutOptions{}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("put twice: %v", err)
	}
	if err := admin.PutResource(t.Context(), id, []byte("third"), kbs.PutOptions{Overwrite: true}); err != nil {
		t.Error(err)
	}

	if ids, err := admin.ListResources(t.Context()); err != nil || !slices.Equal(ids, []resource.ID{id}) {
		t.Errorf("list: %v, %v", ids, err)
	}
	if text, err := admin.ResourcePolicy(t.Context()); err != nil || !strings.Contains(string(text), "default allow := false") {
		t.Errorf("resource policy %q, %v", text, err)
	}
	if text, err := admin.AttestationPolicy(t.Context(), "default_cpu"); err != nil || !strings.Contains(string(text), "trust_claims") {
		t.Errorf("attestation policy %q, %v", text, err)
	}
	if _, err := admin.AttestationPolicy(t.Context(), "default_gpu"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("attestation policy that was never set: %v", err)
	}

	c := newClient(t, s)
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if got, err := c.GetResource(t.Context(), id.URI().String()); err != nil || string(got) != "third" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	calls.Wait()
	if n := s.Handshakes(); n != 1 {
		t.Errorf("%d handshakes", n)
	}

	if err := admin.DeleteResource(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := c.GetResource(t.Context(), id.URI().String()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("deleted resource: %v", err)
	}
	s.Put(id.String(), []byte("fourth"))
	if err := admin.SetResourcePolicy(t.Context(), []byte("package policy\nimport rego.v1\ndefault allow := false\n")); err != nil {
		t.Error(err)
	}
	_, err = c.GetResource(t.Context(), id.URI().String())
	var e *kbs.Error
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !errors.As(err, &e) || e.Reason == nil || e.Reason.NextStep == "" {
		t.Errorf("denied resource: %v", err)
	}
	t.Log(err)
	if err := admin.SetResourcePolicy(t.Context(), []byte("package policy\nallow := (\n")); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("broken policy: %v", err)
	}
	if err := admin.SetAttestationPolicy(t.Context(), "default_cpu", []byte("package policy\nimport rego.v1\ntrust_claims := {\"executables\": 3}\n")); err != nil {
		t.Error(err)
	}
	if err := admin.SetReferenceValues(t.Context(), map[string]any{"svn": []string{"1"}}); err != nil {
		t.Error(err)
	}
	if n := s.Handshakes(); n != 2 { // the denial was asked about once more, with a new token
		t.Errorf("%d handshakes after refusals", n)
	}

	stranger, err := kbs.NewAdmin(s.URL, "not.a.token", kbs.AdminOptions{CA: s.CA})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Close() }()
	if err := stranger.DeleteResource(t.Context(), id); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("stranger: %v", err)
	}
}

// TestDenialEndsWithItsCause does what the denial of a first pull says, and
// asks again before the token of that pull expires.
func TestDenialEndsWithItsCause(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true, NoReferenceValues: true})
	s.Put("default/key/1", []byte("key"))
	c := newClient(t, s)
	const uri = "kbs:///default/key/1"
	if _, err := c.GetResource(t.Context(), uri); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Fatalf("without reference values: %v", err)
	}
	if n := s.Handshakes(); n != 1 {
		t.Errorf("%d handshakes: a token made for the call is not outdated", n)
	}
	s.SetReferenceValues(map[string]any{"launch_digest": []string{"abcde"}, "svn": []string{"1"}, "major_version": 1, "minimum_minor_version": 4})
	if got, err := c.GetResource(t.Context(), uri); err != nil || string(got) != "key" {
		t.Errorf("after they were registered: %q, %v", got, err)
	}
	if n := s.Handshakes(); n != 2 {
		t.Errorf("%d handshakes", n)
	}
}

func TestServiceRefusesSample(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{})
	s.Put("default/key/1", []byte("x"))
	_, err := newClient(t, s).GetResource(t.Context(), "kbs:///default/key/1")
	if !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("error %v", err)
	}
	t.Log(err)
}

func TestServiceGoesAway(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("x"))
	c, err := kbs.NewClient(s.URL, sampleTEE{}, kbs.ClientOptions{Deadline: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s.GoAway()
	if _, err := c.GetResource(t.Context(), "kbs:///default/key/1"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	s.ComeBack()
	if got, err := c.GetResource(t.Context(), "kbs:///default/key/1"); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
}
