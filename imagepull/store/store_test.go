// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestLifeOfALayer(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "not", "there", "yet")
	s := open(t, root)
	if _, found := s.Layer(metaOf("", "a").ChainID); found {
		t.Error("a new store has a layer")
	}
	a := commit(t, s, "", "a", []string{"x=1"})
	b := commit(t, s, a.ChainID, "b", []string{"x=2"})
	if files(t, s, stagingDir) != 0 {
		t.Error("staging is not empty")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, root)
	for _, want := range []Layer{a, b} {
		got, found := s.Layer(want.ChainID)
		if diff := cmp.Diff(want, got); !found || diff != "" {
			t.Errorf("after a restart: found %t %s", found, diff)
		}
	}
	if diff := cmp.Diff([]string{"x=2"}, list(t, b.Path)); diff != "" {
		t.Error(diff)
	}
	if err := s.Remove(b.ChainID); err != nil {
		t.Fatal(err)
	}
	if _, found := s.Layer(b.ChainID); found {
		t.Error("a removed layer is found")
	}
	if err := s.Remove(b.ChainID); !errdefs.IsNotFound(err) {
		t.Errorf("removed twice: %v", err)
	}
	if files(t, s, layersDir) != 1 || files(t, s, stagingDir) != 0 {
		t.Error("removing left files")
	}
}

func TestCommitTwice(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	paths := make([]string, 8)
	for i := range paths {
		wg.Go(func() {
			st, err := s.Stage(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			layer, err := st.Commit(t.Context(), metaOf("", "a"), nil)
			if err != nil {
				t.Error(err)
			}
			paths[i] = layer.Path
		})
	}
	wg.Wait()
	for _, path := range paths {
		if path != paths[0] {
			t.Errorf("one layer has the paths %s and %s", path, paths[0])
		}
	}
	if files(t, s, layersDir) != 1 || files(t, s, stagingDir) != 0 {
		t.Error("the losers left files")
	}
}

func TestCommitErrors(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a := commit(t, s, "", "a", nil)
	wrongChain, wrongDigest, noBlob := metaOf("", "b"), metaOf("", "b"), metaOf("", "b")
	wrongChain.ChainID = a.ChainID
	wrongDigest.DiffID = "sha256:12"
	noBlob.Blob = ""
	for name, tc := range map[string]struct {
		meta     LayerMeta
		implicit []string
		is       func(error) bool
	}{
		"wrong chain":     {wrongChain, nil, errdefs.IsInvalidArgument},
		"wrong digest":    {wrongDigest, nil, errdefs.IsInvalidArgument},
		"no blob":         {noBlob, nil, errdefs.IsInvalidArgument},
		"no parent":       {metaOf(metaOf("", "none").ChainID, "b"), nil, errdefs.IsFailedPrecondition},
		"implicit escape": {metaOf(a.ChainID, "b"), []string{"../.."}, errdefs.IsInvalidArgument},
	} {
		st := stage(t, s)
		if _, err := st.Commit(t.Context(), tc.meta, tc.implicit); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
		if _, err := st.Commit(t.Context(), metaOf("", "b"), nil); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("commit after discard: %v", err)
		}
	}
	if files(t, s, layersDir) != 1 || files(t, s, stagingDir) != 0 {
		t.Error("failed commits left files")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Stage(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOneProcess(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root)
	if _, err := Open(root, Options{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), root) {
		t.Errorf("opened twice: %v", err)
	}
	st := stage(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Claim":  func() error { _, err := s.Claim(metaOf("", "a").ChainID); return err }(),
		"Stage":  func() error { _, err := s.Stage(t.Context()); return err }(),
		"Commit": func() error { _, err := st.Commit(t.Context(), metaOf("", "a"), nil); return err }(),
		"Hold":   s.Hold("x", metaOf("", "a").ChainID),
		"Remove": s.Remove(metaOf("", "a").ChainID),
		"Sync":   s.Sync(),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s of a closed store: %v", name, err)
		}
	}
	open(t, root)
}

// What a crash, or a hand, may leave in the folders is removed when opening.
func TestOpenCleansUp(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root)
	good := commit(t, s, "", "good", []string{"x=1"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	meta, err := os.ReadFile(filepath.Join(filepath.Dir(good.Path), metaFile))
	if err != nil {
		t.Fatal(err)
	}
	plant(t, root, []string{
		"staging/aaaaaaaa/fs/x=half", "staging/hold-x=half", "staging/removed-b/fs/x=half",
		"layers/nometa/fs/x=1", "layers/empty/", "layers/file=1",
		"layers/cut/fs/", "layers/cut/meta.json=" + string(meta[:len(meta)/2]),
		"layers/nofs/meta.json=" + string(meta), "layers/nofs/durable=",
		"layers/zztwice/fs/x=2", "layers/zztwice/meta.json=" + string(meta), "layers/zztwice/durable=",
		"layers/forged/fs/x=2", "layers/forged/durable=",
		"layers/forged/meta.json=" + strings.Replace(string(meta), good.DiffID.String(), metaOf("", "x").DiffID.String(), 1),
		"holds/x.json={",
	})
	s = open(t, root)
	if files(t, s, layersDir) != 1 || files(t, s, stagingDir) != 0 || files(t, s, holdsDir) != 0 {
		t.Error("something is left")
	}
	if _, found := s.Layer(good.ChainID); !found {
		t.Error("the good layer is gone")
	}
}

// After a boot only what had been flushed counts.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	boot := func(id string) *Store {
		s, err := openBooted(root, Options{}, id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	crash := func(s *Store) { // as a killed process: nothing is flushed
		if err := s.Abandon(); err != nil {
			t.Fatal(err)
		}
	}
	s := boot("one")
	flushed := commit(t, s, "", "flushed", nil)
	if _, err := s.Claim(flushed.ChainID); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	late := commit(t, s, flushed.ChainID, "late", nil)
	if err := s.Hold("bundle", late.ChainID); err != nil {
		t.Fatal(err)
	}
	crash(s)

	s = boot("one")
	for _, l := range []Layer{flushed, late} {
		if _, found := s.Layer(l.ChainID); !found {
			t.Errorf("a killed process lost %s", l.ChainID)
		}
	}
	if diff := cmp.Diff([]string{"bundle"}, s.Holders()); diff != "" {
		t.Error(diff)
	}
	crash(s)

	s = boot("two")
	if _, found := s.Layer(flushed.ChainID); !found {
		t.Error("a power cut lost a flushed layer")
	}
	if _, found := s.Layer(late.ChainID); found {
		t.Error("a layer that may be damaged is there after a power cut")
	}
	if len(s.Holders()) != 0 || files(t, s, holdsDir) != 0 {
		t.Error("a hold survived a boot")
	}
	commit(t, s, flushed.ChainID, "late", nil)
	crash(s)

	if s = boot(""); len(s.layers) != 1 {
		t.Error("an unknown boot counts as the same")
	}
	commit(t, s, "", "unknown boot", nil)
	crash(s)
	if s = boot(""); len(s.layers) != 1 {
		t.Error("two unknown boots count as the same")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestHold(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root)
	a := commit(t, s, "", "a", nil)
	b := commit(t, s, a.ChainID, "b", nil)
	c := commit(t, s, b.ChainID, "c", nil)
	if err := s.Hold("x", metaOf("", "none").ChainID); !errdefs.IsNotFound(err) {
		t.Errorf("held nothing: %v", err)
	}
	for range 2 {
		if err := s.Hold("x", b.ChainID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold("y", b.ChainID); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold("x", a.ChainID); !errdefs.IsAlreadyExists(err) {
		t.Errorf("one holder, two layers: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, root)
	for _, l := range []Layer{a, b} {
		if err := s.Remove(l.ChainID); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("removed a held layer: %v", err)
		}
	}
	if err := s.Remove(c.ChainID); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.Release("x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(a.ChainID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "held by y") {
		t.Errorf("removed a layer that another holds: %v", err)
	}
	if err := s.Release("y"); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Layer{a, b} {
		if err := s.Remove(l.ChainID); err != nil {
			t.Error(err)
		}
	}
	if files(t, s, holdsDir) != 0 || files(t, s, stagingDir) != 0 {
		t.Error("released holds left files")
	}
}

func TestPinnedLayerStays(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a := commit(t, s, "", "a", nil)
	below, err := s.pin(a.ChainID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(a.ChainID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed a layer that a commit reads: %v", err)
	}
	s.unpin(below)
	if err := s.Remove(a.ChainID); err != nil {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, root)
		base := commit(t, s, "", "base", nil)
		claimed := commit(t, s, base.ChainID, "claimed", nil)
		held := commit(t, s, "", "held", nil)
		used := commit(t, s, "", "used", nil)
		commit(t, s, "", "lonely", nil)
		if _, err := s.Claim(claimed.ChainID); err != nil {
			t.Fatal(err)
		}
		if err := s.Hold("bundle", held.ChainID); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		defer wg.Wait()
		defer cancel()

		expect := func(want ...Layer) {
			t.Helper()
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, l := range want {
				if _, found := s.layers[l.ChainID]; !found {
					t.Errorf("layer %s is gone", l.Path)
				}
			}
			if len(s.layers) != len(want) {
				t.Errorf("%d layers are left, want %d", len(s.layers), len(want))
			}
		}
		<-time.After(DefaultUnclaimed / 2) // virtual time
		if _, found := s.Layer(used.ChainID); !found {
			t.Fatal("swept too early")
		}
		<-time.After(DefaultUnclaimed / 2)
		expect(base, claimed, held, used)
		if err := s.Release("bundle"); err != nil {
			t.Fatal(err)
		}
		<-time.After(DefaultUnclaimed/2 + time.Second)
		expect(base, claimed, held)
		<-time.After(DefaultUnclaimed)
		expect(base, claimed)
		if err := s.Remove(claimed.ChainID); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * DefaultUnclaimed)
		expect()
	})
}

// A pull may take longer than Unclaimed: what it stands on stays.
func TestSweepWaitsForStagings(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	base := commit(t, s, "", "base", nil)
	st := stage(t, s)
	later := time.Now().Add(2 * DefaultUnclaimed)
	if _, trash, err := s.unlinkUnwanted(later); len(trash) != 0 || err != nil {
		t.Fatalf("swept %v, %v while a layer was being written", trash, err)
	}
	top, err := st.Commit(t.Context(), metaOf(base.ChainID, "top"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold("bundle", top.ChainID); err != nil {
		t.Error(err)
	}
}

// A layer is claimed or swept, never both.
func TestSweepOrClaim(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{Unclaimed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range 300 {
		layer := commit(t, s, "", fmt.Sprint("layer ", i), nil)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
		})
		_, claimed := s.Claim(layer.ChainID)
		wg.Wait()
		if _, err := os.Stat(layer.Path); (err == nil) != (claimed == nil) {
			t.Fatalf("claimed: %v, there: %v", claimed, err)
		}
	}
}

func TestClaimsLast(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := open(t, root)
	a := commit(t, s, "", "a", nil)
	if _, err := s.Claim(metaOf("", "none").ChainID); !errdefs.IsNotFound(err) {
		t.Errorf("claimed nothing: %v", err)
	}
	for range 2 {
		if got, err := s.Claim(a.ChainID); err != nil || got != a {
			t.Errorf("claimed %+v, error %v", got, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if _, trash, err := s.unlinkUnwanted(time.Now().Add(2 * DefaultUnclaimed)); len(trash) != 0 || err != nil {
		t.Errorf("a claimed layer is unwanted after a restart: %v, %v", trash, err)
	}
}

// Run flushes once nothing is being written, and not before.
func TestRunFlushes(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, root)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		defer wg.Wait()
		defer cancel()

		dirty := func() bool {
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range s.layers {
				if e.dirty {
					return true
				}
			}
			return false
		}
		other := stage(t, s)
		commit(t, s, "", "a", nil)
		if !dirty() {
			t.Error("flushed while a layer was being written")
		}
		if err := other.Discard(); err != nil {
			t.Fatal(err)
		}
		if dirty() {
			t.Error("not flushed at rest")
		}
		if _, err := s.Claim(metaOf("", "a").ChainID); err != nil {
			t.Fatal(err)
		}
		if dirty() {
			t.Error("a claim is not flushed")
		}
	})
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=256k,nr_inodes=42"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, root)
	st := stage(t, s)
	full := os.WriteFile(filepath.Join(st.Dir, "x"), make([]byte, 1<<20), 0o600)
	err := s.OutOfSpace(full, 3<<20)
	if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error is %v", err)
	}
	for _, part := range []string{root, "at least 3.0 MiB more", "0 bytes free", "image.work_dir"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if _, err := st.Commit(t.Context(), metaOf("", "a"), nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("commit on a full disk: %v", err)
	}
	if err := st.Discard(); err != nil {
		t.Fatal(err)
	}
	commit(t, s, "", "a", nil) // a retry once there is space works

	a, _ := s.Layer(metaOf("", "a").ChainID)
	for err = nil; err == nil; {
		var st *Staging
		if st, err = s.Stage(t.Context()); err == nil {
			defer func() { _ = st.Discard() }()
		}
	}
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "out of inodes") {
		t.Errorf("error is %v", err)
	}
	if _, err := s.Claim(a.ChainID); !errdefs.IsResourceExhausted(err) {
		t.Errorf("claim on a full disk: %v", err)
	}
	if err := s.Hold("bundle", a.ChainID); !errdefs.IsResourceExhausted(err) {
		t.Errorf("hold on a full disk: %v", err)
	}
	other := errors.New("other")
	if err := s.OutOfSpace(other, 1); !errors.Is(err, other) || errdefs.IsResourceExhausted(err) || s.OutOfSpace(nil, 1) != nil {
		t.Error("another error was changed")
	}
}
