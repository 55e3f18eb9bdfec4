// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/storage"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
)

func open(t *testing.T, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "sub", "kbs.db"))
	if _, err := s.Get(ctx, storage.Resources, "a/b/c"); !errdefs.IsNotFound(err) {
		t.Errorf("get of nothing: %v", err)
	}
	if err := s.Delete(ctx, storage.Resources, "a/b/c"); !errdefs.IsNotFound(err) {
		t.Errorf("delete of nothing: %v", err)
	}
	if keys, err := s.List(ctx, storage.Resources); err != nil || len(keys) != 0 || keys == nil {
		t.Errorf("list of nothing: %v %v", keys, err)
	}
	if err := s.PutNew(ctx, storage.Resources, "a/b/c", []byte("one")); err != nil {
		t.Fatal(err)
	}
	err := s.PutNew(ctx, storage.Resources, "a/b/c", []byte("secret-two"))
	if !errdefs.IsAlreadyExists(err) || strings.Contains(err.Error(), "secret") {
		t.Errorf("put of what is there: %v", err)
	}
	if err := s.Put(ctx, storage.Policies, "a/b/c", []byte("other namespace")); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get(ctx, storage.Resources, "a/b/c"); err != nil || string(v) != "one" {
		t.Errorf("get: %q %v", v, err)
	}
	if err := s.Put(ctx, storage.Resources, "a/b/c", []byte("three")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, storage.Resources, "a/b/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	keys, err := s.List(ctx, storage.Resources)
	if diff := cmp.Diff([]string{"a/b/b", "a/b/c"}, keys); diff != "" || err != nil {
		t.Errorf("list: %s %v", diff, err)
	}
	if err := s.Delete(ctx, storage.Resources, "a/b/c"); err != nil {
		t.Error(err)
	}
	if err := s.Put(ctx, storage.Resources, "", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty key: %v", err)
	}
}

func TestPutNewIsAtomic(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "kbs.db"))
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := s.PutNew(t.Context(), storage.Keys, "k", []byte{byte(i)})
			switch {
			case err == nil:
				won.Add(1)
			case !errdefs.IsAlreadyExists(err):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d writers won", won.Load())
	}
}

func TestRestartAndClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kbs.db")
	s := open(t, path)
	if err := s.Put(t.Context(), storage.Keys, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if _, err := bolt.Open(path); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second opener: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), storage.Keys, "k"); !errdefs.IsUnavailable(err) {
		t.Errorf("get after close: %v", err)
	}
	if err := s.Put(t.Context(), storage.Keys, "k", nil); !errdefs.IsUnavailable(err) {
		t.Errorf("put after close: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v", fi.Mode(), err)
	}
	if v, err := open(t, path).Get(t.Context(), storage.Keys, "k"); err != nil || string(v) != "v" {
		t.Errorf("after restart: %q %v", v, err)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := open(t, filepath.Join(t.TempDir(), "kbs.db"))
	if err := s.Put(ctx, storage.Keys, "k", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestFullDisk writes to a small tmpfs until it is full.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if strings.Contains(os.Getenv("REQUIRE"), "root") {
			t.Fatal(err)
		}
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := open(t, filepath.Join(dir, "kbs.db"))
	if err := s.Put(t.Context(), storage.Keys, "small", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; i < 64 && err == nil; i++ {
		err = s.Put(t.Context(), storage.Resources, fmt.Sprint(i), make([]byte, 32<<10))
	}
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "enlarge its disk") {
		t.Errorf("full disk: %v", err)
	}
	if v, err := s.Get(t.Context(), storage.Keys, "small"); err != nil || string(v) != "kept" {
		t.Errorf("read on a full disk: %q %v", v, err)
	}
}
