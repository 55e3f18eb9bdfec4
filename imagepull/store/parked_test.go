// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// treeOf is the tree of metaOf's layer of that name.
func treeOf(name string) Tree {
	meta := metaOf("", name)
	return Tree{Content: Content{Blob: meta.Blob, DiffID: meta.DiffID}, Size: 100, Inodes: 2}
}

// park leaves a layer in the store.
func park(t testing.TB, s *Store, name string, files ...string) {
	t.Helper()
	st := stage(t, s)
	plant(t, st.Dir, files)
	if err := st.Park(treeOf(name)); err != nil {
		t.Fatal(err)
	}
	if stays, err := st.Leave(); !stays || err != nil {
		t.Fatalf("stays %t, %v", stays, err)
	}
}

// parkedNames are those of names that are parked.
func parkedNames(s *Store, names ...string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return !s.Parked(treeOf(name).Content) })
}

// count fails unless the store has so many parked layers, in memory and on disk.
func count(t *testing.T, s *Store, want int) {
	t.Helper()
	u, err := s.Usage()
	if n := files(t, s, parkedDir); n != want || u.Parked != want || err != nil {
		t.Errorf("%d layers are parked, %d on disk, want %d: %v", u.Parked, n, want, err)
	}
	if n := files(t, s, stagingDir); n > 0 {
		t.Errorf("%d stagings", n)
	}
}

// A parked layer is taken once, with all that its commit needs, after a restart
// too, and is committed as any other.
func TestParkAndTake(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(t *testing.T, s *Store, st *Staging) *Store{
		"left": func(t *testing.T, s *Store, st *Staging) *Store {
			t.Helper()
			leave(t, st)
			return s
		},
		"left, restarted": func(t *testing.T, s *Store, st *Staging) *Store {
			t.Helper()
			leave(t, st)
			return reopen(t, s)
		},
		"closed, then left": func(t *testing.T, s *Store, st *Staging) *Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			leave(t, st)
			return open(t, s.root)
		},
		"killed": func(t *testing.T, s *Store, _ *Staging) *Store {
			t.Helper()
			if err := s.Abandon(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.root)
		},
		"closed, then discarded": func(t *testing.T, s *Store, st *Staging) *Store {
			t.Helper()
			if err := errors.Join(s.Close(), st.Discard()); err != nil {
				t.Fatal(err)
			}
			return open(t, s.root)
		},
		"closed, opened, then discarded": func(t *testing.T, s *Store, st *Staging) *Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, s.root)
			if err := st.Discard(); err != nil {
				t.Fatal(err)
			}
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Open(t.TempDir(), Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			st, err := s.Stage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			plant(t, st.Dir, []string{"dir/file=content"})
			tree := treeOf("a")
			tree.Encrypted, tree.Implicit = true, []string{"dir", "not\xffUTF-8"}
			if err := errors.Join(st.Park(tree), st.Park(tree)); err != nil {
				t.Fatal(err)
			}
			s = between(t, s, st)
			count(t, s, 1)
			st, got, found := s.Take(tree.Content)
			if diff := cmp.Diff(tree, got); diff != "" || !found {
				t.Fatalf("found %t: %s", found, diff)
			}
			if _, _, again := s.Take(tree.Content); again || s.Parked(tree.Content) {
				t.Error("taken twice")
			}
			layer, err := st.Commit(t.Context(), metaOf("", "a"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"dir/", "dir/file=content"}, list(t, layer.Path)); diff != "" {
				t.Error(diff)
			}
			if left, err := os.ReadDir(filepath.Dir(layer.Path)); err != nil || len(left) != 2 { // meta.json and fs
				t.Errorf("the layer has %v, %v", left, err)
			}
			count(t, s, 0)
		})
	}
}

func leave(t *testing.T, st *Staging) {
	t.Helper()
	if stays, err := st.Leave(); !stays || err != nil {
		t.Fatalf("stays %t, %v", stays, err)
	}
	if stays, err := st.Leave(); stays || err != nil {
		t.Errorf("again: %t, %v", stays, err)
	}
}

// What a commit may have changed is not left, and neither is what was never
// parked, or is parked already.
func TestLeaveDiscards(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	park(t, s, "twice", "file=1")
	for name, prepare := range map[string]func(st *Staging) error{
		"never parked": func(*Staging) error { return nil },
		"twice":        func(st *Staging) error { return st.Park(treeOf("twice")) },
		"commit failed": func(st *Staging) error {
			commit(t, s, "", "below", nil)
			if err := st.Park(treeOf("b")); err != nil {
				return err
			}
			if _, err := st.Commit(t.Context(), metaOf(metaOf("", "below").ChainID, "b"), []string{"../out"}); !errdefs.IsInvalidArgument(err) {
				return errors.Join(errors.New("committed"), err)
			}
			return nil
		},
		"committed": func(st *Staging) error {
			_, err := st.Commit(t.Context(), metaOf("", "c"), nil)
			return errors.Join(st.Park(treeOf("c")), err)
		},
	} {
		st := stage(t, s)
		err := prepare(st)
		if name == "committed" && errdefs.IsFailedPrecondition(err) {
			err = nil
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if stays, err := st.Leave(); stays || err != nil {
			t.Errorf("%s: stays %t, %v", name, stays, err)
		}
	}
	count(t, s, 1)
	st, _, _ := s.Take(treeOf("twice").Content)
	if got := list(t, st.Dir); !slices.Equal(got, []string{"file=1"}) {
		t.Errorf("the first one is %v", got)
	}
	if err := st.Discard(); err != nil {
		t.Error(err)
	}
	count(t, s, 0)
	many := treeOf("many")
	many.Implicit = slices.Repeat([]string{strings.Repeat("d/", 2000)}, 300)
	for _, tree := range []Tree{{}, many} {
		if err := stage(t, s).Park(tree); !errdefs.IsInvalidArgument(err) {
			t.Errorf("parked %v: %v", tree.Content, err)
		}
	}
}

// Nothing of a parked layer is deleted before the record is that says it is whole.
func TestNoHalfIsParked(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plant(t, st.Dir, []string{"a=1", "b=2"})
	record := filepath.Join(filepath.Dir(st.Dir), parkedFile)
	if err := errors.Join(st.Park(treeOf("a")), unix.Mount(record, record, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := st.Discard(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("discarded: %v", err)
	}
	if err := errors.Join(unix.Unmount(record, unix.MNT_DETACH), s.Abandon()); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.root)
	count(t, s, 1)
	st, _, found := s.Take(treeOf("a").Content)
	if !found || !slices.Equal(list(t, st.Dir), []string{"a=1", "b=2"}) {
		t.Errorf("found %t", found)
	}
}

// Whoever leaves what was taken begins its time anew.
func TestLeaveIsAUse(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	park(t, s, "a", "file")
	old := time.Now().Add(-2 * DefaultUnclaimed)
	if err := os.Chtimes(s.path(parkedDir, s.parked[treeOf("a").Content].id, parkedFile), old, old); err != nil {
		t.Fatal(err)
	}
	st, _, found := s.Take(treeOf("a").Content)
	if !found {
		t.Fatal("not found")
	}
	leave(t, st)
	s = reopen(t, s)
	if _, err := s.GC(t.Context()); err != nil {
		t.Error(err)
	}
	count(t, s, 1)
}

// Of what is damaged, or from before the machine last booted, Open leaves nothing.
func TestOpenDropsParked(t *testing.T) {
	t.Parallel()
	edit := func(change func([]byte) []byte) func(dir string) error {
		return func(dir string) error {
			path := filepath.Join(dir, parkedFile)
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, change(b), 0o600))
		}
	}
	for name, tc := range map[string]struct {
		damage func(dir string) error
		boot   string
	}{
		"no record":        {func(dir string) error { return os.Remove(filepath.Join(dir, parkedFile)) }, "1"},
		"no files":         {func(dir string) error { return os.RemoveAll(filepath.Join(dir, fsDir)) }, "1"},
		"half a record":    {edit(func(b []byte) []byte { return b[:len(b)/2] }), "1"},
		"of no layer":      {edit(func([]byte) []byte { return []byte(`{"bootID":"1"}`) }), "1"},
		"negative size":    {edit(func(b []byte) []byte { return bytes.Replace(b, []byte(":100"), []byte(":-1"), 1) }), "1"},
		"another boot":     {func(string) error { return nil }, "2"},
		"boot is unknown":  {func(string) error { return nil }, ""},
		"files are a file": {func(dir string) error { p := filepath.Join(dir, fsDir); return errors.Join(os.RemoveAll(p), touch(p)) }, "1"},
		"a file":           {func(dir string) error { return errors.Join(os.RemoveAll(dir), touch(dir)) }, "1"},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s, err := OpenBooted(t.TempDir(), Options{}, "1")
				if err != nil {
					t.Fatal(err)
				}
				st, err := s.Stage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := st.Park(treeOf("a")); err != nil {
					t.Fatal(err)
				}
				dir := filepath.Dir(st.Dir)
				if !killed {
					leave(t, st)
					dir = s.path(parkedDir, filepath.Base(dir))
				}
				if err := errors.Join(tc.damage(dir), s.Abandon()); err != nil {
					t.Fatal(err)
				}
				s, err = OpenBooted(s.root, Options{}, tc.boot)
				if err != nil {
					t.Fatal(err)
				}
				count(t, s, 0)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What is damaged while the store is open is not taken, and goes.
func TestTakeDamaged(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(s *Store, dir string) error{
		"no record": func(_ *Store, dir string) error { return os.Remove(filepath.Join(dir, parkedFile)) },
		"another's": func(s *Store, dir string) error {
			return writeJSON(filepath.Join(dir, parkedFile), treeOf("b").record(s.bootID))
		},
		"gone": func(_ *Store, dir string) error { return os.RemoveAll(dir) },
	} {
		s := open(t, t.TempDir())
		park(t, s, "a", "file")
		if err := damage(s, s.path(parkedDir, s.parked[treeOf("a").Content].id)); err != nil {
			t.Fatal(err)
		}
		if _, _, found := s.Take(treeOf("a").Content); found {
			t.Errorf("%s: taken", name)
		}
		count(t, s, 0)
		if s.staged != 0 {
			t.Errorf("%s: %d stagings are counted", name, s.staged)
		}
	}
}

// Of two with one content, as a kill can leave them, one stays.
func TestParkedTwice(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		st, err := s.Stage(t.Context())
		if err == nil {
			err = st.Park(treeOf("a"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Abandon(); err != nil {
		t.Fatal(err)
	}
	count(t, open(t, s.root), 1)
}

// Parked layers go when they are too old, also where that was before a restart,
// and first of all, the oldest first, where there is too much. Those that a pull
// has reserved for stay.
func TestGCOfParked(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for _, name := range []string{"a", "b", "c", "d"} {
		park(t, s, name, "file")
	}
	s.commitOf(t, "layer", 100)
	if u, err := s.Usage(); err != nil || u.Bytes != 500 || u.Inodes != 9 || u.Layers != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	old := time.Now().Add(-DefaultUnclaimed)
	if err := os.Chtimes(s.path(parkedDir, s.parked[treeOf("b").Content].id, parkedFile), old, old); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	collect := func(s *Store, want Result, left ...string) {
		t.Helper()
		got, err := s.GC(t.Context())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
		if got := parkedNames(s, "a", "b", "c", "d"); !slices.Equal(got, left) {
			t.Errorf("parked are %v, want %v", got, left)
		}
		count(t, s, len(left))
	}
	collect(s, Result{Parked: 1, Bytes: 100, Inodes: 2}, "a", "c", "d")
	lease := s.Lease()
	if err := lease.Reserve(t.Context(), []Demand{{ChainID: metaOf("", "c").ChainID, Content: treeOf("c").Content, Blob: 10}}); err != nil {
		t.Fatal(err)
	}
	s.opts.MaxBytes = 300
	s.order("d", "c", "a")
	collect(s, Result{Parked: 1, Bytes: 100, Inodes: 2}, "a", "c")
	s.opts.MaxBytes = 50
	collect(s, Result{Parked: 1, Layers: 1, Bytes: 200, Inodes: 3}, "c")
	lease.End()
	collect(s, Result{Parked: 1, Bytes: 100, Inodes: 2})
}

// commitOf adds a layer of a size that nobody has used for a while.
func (s *Store) commitOf(t *testing.T, name string, size int64) {
	t.Helper()
	meta := metaOf("", name)
	meta.Size = size
	if _, err := stage(t, s).Commit(t.Context(), meta, nil); err != nil {
		t.Fatal(err)
	}
}

// order makes some parked layers older than others.
func (s *Store) order(oldestFirst ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, name := range oldestFirst {
		c := treeOf(name).Content
		p := s.parked[c]
		p.since = time.Now().Add(time.Duration(i-len(oldestFirst)) * time.Second)
		s.parked[c] = p
	}
}

// A pull that lacks room has parked layers removed, but for those that it wants,
// which need no room, each once; those that nobody wants are counted as free.
func TestReserveEvictsParked(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for _, name := range []string{"a", "b", "c"} {
		park(t, s, name, "file")
	}
	s.order("b", "a", "c")
	s.opts.MaxBytes = 350
	demand := func(parent digest.Digest, name string, size int64) Demand {
		return Demand{ChainID: metaOf(parent, name).ChainID, Content: treeOf(name).Content, Blob: size}
	}
	lease := s.Lease()
	if err := lease.Reserve(t.Context(), []Demand{demand("", "a", 1000), demand("", "new", 120)}); err != nil {
		t.Fatal(err)
	}
	if got := parkedNames(s, "a", "b", "c"); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("parked are %v", got)
	}
	lease.End()
	again := s.Lease()
	defer again.End()
	// Twice the same content is one more than there is.
	err := again.Reserve(t.Context(), []Demand{demand("", "a", 251), demand(metaOf("", "a").ChainID, "a", 251)})
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("reserved: %v", err)
	}
	if err := again.Reserve(t.Context(), []Demand{demand("", "a", 250), demand(metaOf("", "a").ChainID, "a", 250)}); err != nil {
		t.Error(err)
	}
	if got := parkedNames(s, "a", "b", "c"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("parked are %v", got)
	}
}

// With an image goes what is parked of its layers.
func TestRemoveImageParked(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	layers := stack(t, s, 100, "base", "a")
	recordAs(t, s, "image", layers)
	park(t, s, "other", "file")
	meta := layers[1].LayerMeta
	tree := Tree{Content: Content{meta.Blob, meta.DiffID}, Size: 7, Inodes: 1}
	st := stage(t, s)
	if err := st.Park(tree); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Leave(); err != nil {
		t.Fatal(err)
	}
	got, err := s.RemoveImage(t.Context(), manifestOf("image"))
	if err != nil || got.Layers != 2 || got.Parked != 1 || got.Bytes != 207 {
		t.Errorf("removed %+v, %v", got, err)
	}
	count(t, s, 1)
}

// Run takes parked layers away in time.
func TestRunRemovesParked(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, root)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		park(t, s, "a", "file")
		<-time.After(DefaultUnclaimed - time.Minute)
		synctest.Wait()
		count(t, s, 1)
		<-time.After(DefaultUnclaimed / 4)
		synctest.Wait()
		count(t, s, 0)
	})
}

func FuzzParked(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"blob":"sha256:` + digest.FromString("a").Encoded() + `","diffID":"sha256:` + digest.FromString("b").Encoded() + `","size":1,"inodes":2,"implicit":["YQ=="],"bootID":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, _, err := parseParked(b)
		if err == nil && (tree.check() != nil || tree.Size < 0) {
			t.Errorf("accepted %+v", tree)
		}
	})
}
