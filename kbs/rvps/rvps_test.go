// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package rvps_test

import (
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/rvps"
	"github.com/coffer-cc/coffer/kbs/storage"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
)

func open(t testing.TB) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(filepath.Join(t.TempDir(), "kbs.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func sample(payload string) []byte {
	return []byte(`{"version":"0.1.0","type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `"}`)
}

func TestRegisterAndExpire(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	store := open(t)
	s := rvps.New(store, func() time.Time { return now })
	names, err := s.Register(t.Context(), sample(`{"svn":["1"],"a/b":{"x":18446744073709551615}}`))
	if diff := cmp.Diff([]string{"a/b", "svn"}, names); diff != "" || err != nil {
		t.Fatal(diff, err)
	}
	v, err := s.ReferenceValue(t.Context(), "a/b")
	if diff := cmp.Diff(map[string]any{"x": json.Number("18446744073709551615")}, v); diff != "" || err != nil {
		t.Error(diff, err)
	}
	raw, err := store.Get(t.Context(), storage.ReferenceValues, "svn")
	if want := `{"version":"0.1.0","name":"svn","expiration":"2027-01-02T03:04:05Z","value":["1"]}`; string(raw) != want || err != nil {
		t.Errorf("stored %s %v", raw, err)
	}
	now = now.AddDate(1, 0, 0)
	if _, err := s.ReferenceValue(t.Context(), "svn"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "expired at 2027") {
		t.Errorf("expired: %v", err)
	}
	if _, err := s.ReferenceValue(t.Context(), "absent"); !errdefs.IsNotFound(err) {
		t.Errorf("absent: %v", err)
	}
	if names, err := s.Names(t.Context()); err != nil || len(names) != 2 {
		t.Errorf("names %v %v", names, err)
	}
}

func TestRefusedMessages(t *testing.T) {
	t.Parallel()
	s := rvps.New(open(t), nil)
	for name, msg := range map[string][]byte{
		"not JSON":      []byte("{"),
		"version":       []byte(`{"version":"1.0.0","type":"sample","payload":"e30="}`),
		"not base64":    []byte(`{"type":"sample","payload":"%"}`),
		"not an object": sample(`[1]`),
		"no value":      sample(`{}`),
		"empty name":    sample(`{"":1}`),
	} {
		if _, err := s.Register(t.Context(), msg); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Register(t.Context(), []byte(`{"type":"corim","payload":""}`)); !errdefs.IsNotImplemented(err) {
		t.Errorf("corim: %v", err)
	}
	if names, err := s.Names(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("something was stored: %v %v", names, err)
	}
}

func FuzzRegister(f *testing.F) {
	f.Add(sample(`{"svn":["1"]}`))
	f.Add([]byte(`{"type":"sample","payload":null}`))
	s := rvps.New(open(f), nil)
	f.Fuzz(func(t *testing.T, msg []byte) {
		names, err := s.Register(t.Context(), msg)
		if err != nil {
			return
		}
		for _, n := range names {
			if _, err := s.ReferenceValue(t.Context(), n); err != nil {
				t.Errorf("registered, not there: %v", err)
			}
		}
	})
}
