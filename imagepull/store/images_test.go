// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"fmt"
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
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// stack commits layers of these names, each of size bytes, one on the other.
func stack(t testing.TB, s *Store, size int64, names ...string) []Layer {
	t.Helper()
	var layers []Layer
	parent := digest.Digest("")
	for _, name := range names {
		st := stage(t, s)
		meta := metaOf(parent, name)
		meta.Size, meta.Inodes = size, 2
		layer, err := st.Commit(t.Context(), meta, nil)
		if err != nil {
			t.Fatal(err)
		}
		layers, parent = append(layers, layer), layer.ChainID
	}
	return layers
}

func manifestOf(name string) digest.Digest { return digest.FromString("manifest " + name) }

// recordAs records an image whose name is also that of its manifest.
func recordAs(t testing.TB, s *Store, name string, layers []Layer) {
	t.Helper()
	if err := s.RecordImage("reg.example/"+name, manifestOf(name), layers[len(layers)-1].ChainID); err != nil {
		t.Fatal(err)
	}
}

// names lists the recorded images by the names that recordAs gave them.
func names(s *Store) []string {
	var list []string
	for _, i := range s.Images() {
		list = append(list, strings.TrimPrefix(i.References[0], "reg.example/"))
	}
	return list
}

func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.root)
}

func TestImages(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a, b := stack(t, s, 100, "base", "a"), stack(t, s, 100, "base", "b1", "b2")
	recordAs(t, s, "a", a)
	recordAs(t, s, "b", b)
	for _, name := range []string{"x", "y", "x"} { // a again, by other names
		if err := s.RecordImage(name, manifestOf("a"), a[1].ChainID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Claim(b[2].ChainID); err != nil {
		t.Fatal(err)
	}
	want := []Image{
		{ImageMeta{manifestOf("b"), []string{"reg.example/b"}, b[2].ChainID}, []digest.Digest{b[0].ChainID, b[1].ChainID, b[2].ChainID}, 300, 200, time.Time{}, true},
		{ImageMeta{manifestOf("a"), []string{"reg.example/a", "y", "x"}, a[1].ChainID}, []digest.Digest{a[0].ChainID, a[1].ChainID}, 200, 100, time.Time{}, false},
	}
	for _, when := range []string{"at once", "after a restart"} {
		got := s.Images()
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Image{}, "LastUsed")); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
		if d := time.Since(got[0].LastUsed); d < 0 || d > time.Minute || got[1].LastUsed.Before(got[0].LastUsed) || got[1].Shared() != 100 {
			t.Errorf("%s: %+v", when, got)
		}
		if u, err := s.Usage(); err != nil || u.Images != 2 || u.Layers != 4 || u.Bytes != 400 || u.Inodes != 8 || u.Free <= 0 {
			t.Errorf("%s: %+v, %v", when, u, err)
		}
		s = reopen(t, s)
	}
	for i := range 3 * maxReferences {
		if err := s.RecordImage(fmt.Sprint("name ", i), manifestOf("a"), a[1].ChainID); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Images()[1].References; len(got) != maxReferences || got[maxReferences-1] != fmt.Sprint("name ", 3*maxReferences-1) {
		t.Errorf("it has the names %q", got)
	}
}

// Where a name cannot be changed, what was written for it goes.
func TestRenameFails(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a := stack(t, s, 1, "base", "a", "b")
	recordAs(t, s, "a", a)
	plant(t, s.root, []string{
		"holds/" + holdFile("bundle") + "/x=", "images/" + imageFile(manifestOf("b")) + "/x=",
		"staging/removed-" + filepath.Base(filepath.Dir(a[1].Path)) + "/x=",
	})
	if err := s.Hold("bundle", a[2].ChainID); err == nil || len(s.Holders()) != 0 {
		t.Errorf("held by %v, %v", s.Holders(), err)
	}
	if err := s.RecordImage("b", manifestOf("b"), a[2].ChainID); err == nil || len(s.Images()) != 1 {
		t.Errorf("recorded are %v, %v", s.Images(), err)
	}
	result, err := s.RemoveImage(t.Context(), manifestOf("a"))
	if err == nil || result.Layers != 2 || files(t, s, layersDir) != 1 || files(t, s, stagingDir) != 1 {
		t.Errorf("removed %+v, %v; %d files in staging", result, err, files(t, s, stagingDir))
	}
	if err := os.RemoveAll(s.path(stagingDir, "removed-"+filepath.Base(filepath.Dir(a[1].Path)))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.collect(t.Context(), time.Now().Add(2*DefaultUnclaimed)); err != nil || files(t, s, layersDir) != 0 || files(t, s, stagingDir) != 0 {
		t.Errorf("the rest is not removed: %v", err)
	}
}

func TestManyImages(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a, b := stack(t, s, 1, "a"), stack(t, s, 1, "b")
	recordAs(t, s, "held", a)
	if err := s.Hold("bundle", a[0].ChainID); err != nil {
		t.Fatal(err)
	}
	for i := range maxImages + 10 {
		recordAs(t, s, fmt.Sprint(i), b)
	}
	if got := names(s); len(got) != maxImages || got[0] != "held" || got[1] != "11" || files(t, s, imagesDir) != maxImages {
		t.Errorf("%d images, %q", len(got), got[:2])
	}
}

func TestRecordImageErrors(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a := stack(t, s, 1, "base", "a")
	recordAs(t, s, "a", a)
	absent := metaOf(a[1].ChainID, "absent").ChainID
	for name, tc := range map[string]struct {
		reference     string
		manifest, top digest.Digest
		is            func(error) bool
	}{
		"no name":      {"", manifestOf("b"), a[1].ChainID, errdefs.IsInvalidArgument},
		"no manifest":  {"b", "x", a[1].ChainID, errdefs.IsInvalidArgument},
		"no layers":    {"b", manifestOf("b"), "", errdefs.IsInvalidArgument},
		"absent":       {"b", manifestOf("b"), absent, errdefs.IsFailedPrecondition},
		"other layers": {"b", manifestOf("a"), a[0].ChainID, errdefs.IsAlreadyExists},
	} {
		if err := s.RecordImage(tc.reference, tc.manifest, tc.top); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := names(s); !slices.Equal(got, []string{"a"}) || files(t, s, imagesDir) != 1 || files(t, s, stagingDir) != 0 {
		t.Errorf("images are %q", got)
	}
}

func TestRemoveImage(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a, b := stack(t, s, 100, "base", "a"), stack(t, s, 100, "base", "b")
	recordAs(t, s, "a", a)
	recordAs(t, s, "b", b)
	other := stack(t, s, 100, "other") // of nobody, and not RemoveImage's business
	if err := s.Hold("bundle", a[1].ChainID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RemoveImage(t.Context(), manifestOf("a")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed a mounted image: %v", err)
	}
	if err := s.Release("bundle"); err != nil {
		t.Fatal(err)
	}
	got, err := s.RemoveImage(t.Context(), manifestOf("a"))
	if diff := cmp.Diff(Result{Images: []digest.Digest{manifestOf("a")}, Layers: 1, Bytes: 100, Inodes: 2}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := s.RemoveImage(t.Context(), manifestOf("a")); !errdefs.IsNotFound(err) {
		t.Errorf("removed twice: %v", err)
	}
	s = reopen(t, s)
	if got := names(s); !slices.Equal(got, []string{"b"}) || files(t, s, layersDir) != 3 || files(t, s, imagesDir) != 1 {
		t.Errorf("left are %q and %d layers", got, files(t, s, layersDir))
	}
	if _, found := s.Layer(other[0].ChainID); !found {
		t.Error("removed another's layer")
	}
	// A layer that goes takes the record of its images with it.
	if err := s.Remove(b[0].ChainID); err != nil {
		t.Fatal(err)
	}
	if got := names(s); len(got) != 0 || files(t, s, imagesDir) != 0 {
		t.Errorf("recorded are %q", got)
	}
}

// Of a crash between the removal of a layer and that of the record, and of what
// a hand may have done, nothing is left after Open.
func TestLoadImages(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	a, b := stack(t, s, 100, "base", "a"), stack(t, s, 100, "base", "b")
	recordAs(t, s, "a", a)
	recordAs(t, s, "b", b)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(a[1].Path)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path(imagesDir, imageFile(manifestOf("b"))))
	if err != nil {
		t.Fatal(err)
	}
	plant(t, s.root, []string{
		"images/x.json=" + string(good), "images/" + imageFile(manifestOf("c")) + "=" + string(good), "images/empty=", "images/cut={\"manifest\":", "images/dir/x=",
		"images/link=->/dev/zero", "holds/dir/x=", "holds/link=->/dev/zero", "layers/link=->/",
	})
	future := time.Now().Add(1000 * time.Hour)
	if err := os.Chtimes(s.path(imagesDir, imageFile(manifestOf("b"))), future, future); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.root)
	if got := names(s); !slices.Equal(got, []string{"b"}) || files(t, s, imagesDir) != 1 || files(t, s, holdsDir) != 0 || files(t, s, layersDir) != 2 {
		t.Errorf("images %q, %d files", got, files(t, s, imagesDir))
	}
	if used := s.Images()[0].LastUsed; used.After(time.Now()) {
		t.Errorf("used in the future: %s", used)
	}
}

func TestGCByAge(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(root, Options{MaxAge: 10 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		for _, name := range []string{"old", "mounted", "claimed", "used"} {
			recordAs(t, s, name, stack(t, s, 100, "base", name))
		}
		if err := s.Hold("bundle", metaOf(metaOf("", "base").ChainID, "mounted").ChainID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Claim(metaOf(metaOf("", "base").ChainID, "claimed").ChainID); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		expect := func(layers int, want ...string) {
			t.Helper()
			synctest.Wait()
			got := names(s)
			slices.Sort(got)
			if !slices.Equal(got, want) || files(t, s, layersDir) != layers {
				t.Errorf("images are %q, want %q; %d layers", got, want, files(t, s, layersDir))
			}
		}
		<-time.After(5 * time.Hour)
		recordAs(t, s, "used", []Layer{{LayerMeta: metaOf(metaOf("", "base").ChainID, "used")}})
		<-time.After(5*time.Hour + time.Minute)
		expect(4, "claimed", "mounted", "used")
		<-time.After(5 * time.Hour)
		expect(3, "claimed", "mounted")
		if err := s.Release("bundle"); err != nil {
			t.Fatal(err)
		}
		<-time.After(9 * time.Hour)
		expect(3, "claimed", "mounted") // its age counts from the release
		<-time.After(2 * time.Hour)
		expect(2, "claimed")
		if err := s.Remove(metaOf(metaOf("", "base").ChainID, "claimed").ChainID); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Hour)
		expect(0)
	})
}

func TestGCBySize(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{MaxBytes: 500})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range []string{"first", "held", "claimed", "second", "third"} {
		recordAs(t, s, name, stack(t, s, 100, "base", name))
	}
	chain := func(name string) digest.Digest { return metaOf(metaOf("", "base").ChainID, name).ChainID }
	if err := s.Hold("bundle", chain("held")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(chain("claimed")); err != nil {
		t.Fatal(err)
	}
	gc := func(wantFreed int64, want ...string) {
		t.Helper()
		result, err := s.GC(t.Context())
		if got := names(s); !slices.Equal(got, want) || err != nil || result.Bytes != wantFreed {
			t.Errorf("images are %q, want %q; %+v, %v", got, want, result, err)
		}
	}
	gc(100, "held", "claimed", "second", "third")
	gc(0, "held", "claimed", "second", "third")
	stack(t, s, 100, "loose") // goes before any image does
	gc(100, "held", "claimed", "second", "third")

	// What a pull under way has looked at stays, as long as it lasts.
	lease := s.Lease()
	s.Layer(chain("second"))
	stack(t, s, 100, "base", "second", "on its way")
	gc(100, "held", "claimed", "second")
	stack(t, s, 100, "new")
	gc(0, "held", "claimed", "second")
	lease.End()
	lease.End()
	gc(200, "held", "claimed", "second")
	recordAs(t, s, "large", stack(t, s, 200, "base", "large"))
	gc(100, "held", "claimed", "large")
	s.opts.MaxBytes = 1
	gc(200, "held", "claimed")
	if n := files(t, s, layersDir); n != 3 || files(t, s, stagingDir) != 0 {
		t.Errorf("%d layers are left", n)
	}

	// Without a lease nothing goes while something is being written.
	recordAs(t, s, "late", stack(t, s, 100, "late"))
	st := stage(t, s)
	gc(0, "held", "claimed", "late")
	if err := st.Discard(); err != nil {
		t.Fatal(err)
	}
	gc(100, "held", "claimed")
}

// A layer that a pull relies on is not taken away from it.
func TestRemoveWhilePulling(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	before, used := stack(t, s, 1, "before"), stack(t, s, 1, "used")
	if _, err := s.Claim(used[0].ChainID); err != nil {
		t.Fatal(err)
	}
	recordAs(t, s, "image", used)
	lease := s.Lease()
	if _, found := s.Layer(used[0].ChainID); !found {
		t.Fatal("it is not there")
	}
	late := stack(t, s, 1, "late")
	for _, l := range [][]Layer{before, used, late} {
		if err := s.Remove(l[0].ChainID); err != nil {
			t.Error(err)
		}
	}
	if n := files(t, s, layersDir); n != 2 {
		t.Errorf("%d layers are left", n)
	}
	if err := s.Hold("bundle", used[0].ChainID); err != nil {
		t.Error(err)
	}
	lease.End()
	if err := s.Release("bundle"); err != nil {
		t.Fatal(err)
	}
	if result, _, err := s.unlinkUnwanted(time.Now().Add(2 * DefaultUnclaimed)); result.Layers != 1 || err != nil {
		t.Errorf("removed %+v, %v", result, err) // late; the other is still of an image
	}
	if _, err := s.RemoveImage(t.Context(), manifestOf("image")); err != nil {
		t.Error(err)
	}
	if n := files(t, s, layersDir); n != 0 {
		t.Errorf("%d layers are left", n)
	}
}

func demand(size int64, compressed bool, names ...string) []Demand {
	var list []Demand
	parent := digest.Digest("")
	for _, name := range names {
		parent = metaOf(parent, name).ChainID
		list = append(list, Demand{ChainID: parent, Blob: size, Compressed: compressed})
	}
	return list
}

func TestReserve(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), Options{MaxBytes: 1000 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	const unit = 100 << 10
	for _, name := range []string{"a", "b", "c", "d"} {
		recordAs(t, s, name, stack(t, s, unit, "base", name))
	}
	l := s.Lease()
	defer func() { l.End() }()
	reserve := func(d []Demand, want ...string) error {
		t.Helper()
		err := l.Reserve(t.Context(), d)
		if got := names(s); !slices.Equal(got, want) {
			t.Errorf("images are %q, want %q", got, want)
		}
		return err
	}
	// 500 of 1000 are in use.
	if err := reserve(demand(unit, false, "p", "q", "r", "s", "t"), "a", "b", "c", "d"); err != nil {
		t.Error(err)
	}
	if err := reserve(demand(unit, true, "p", "q"), "a", "b", "c", "d"); err != nil { // probably 500
		t.Error(err)
	}
	if err := reserve(demand(unit, true, "p", "q", "r"), "d"); err != nil { // probably 750
		t.Error(err)
	}
	// Probably 2000, but maybe 800: that is for the pull to find out.
	if err := reserve(demand(4*unit, true, "p", "q")); err != nil {
		t.Error(err)
	}
	l.End()
	recordAs(t, s, "e", stack(t, s, unit, "e"))
	l = s.Lease()
	err = reserve(demand(6*unit, true, "p", "q"), "e") // it would not help
	if !errdefs.IsResourceExhausted(err) {
		t.Fatalf("error is %v", err)
	}
	for _, part := range []string{"size limit", "at least 1.2 MiB, probably 2.9 MiB", "limit is 1000.0 KiB", "100.0 KiB are in use, 100.0 KiB of that by images that nothing uses"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	// What is there costs nothing, and nothing is reserved by what failed.
	have := stack(t, s, 9*unit, "x")
	if err := reserve([]Demand{{ChainID: have[0].ChainID, Blob: 100 * unit}, {ChainID: metaOf("", "y").ChainID, Blob: unit}}); err != nil {
		t.Error(err)
	}
	// It is promised until it is committed or the lease ends.
	other := s.Lease()
	if err := other.Reserve(t.Context(), demand(unit, false, "z")); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "100.0 KiB promised to other pulls") {
		t.Errorf("what is promised was promised again: %v", err)
	}
	if err := other.Reserve(t.Context(), demand(unit, false, "y")); err != nil {
		t.Errorf("the same layer is counted twice: %v", err)
	}
	other.End()
	stack(t, s, 0, "y") // nearly nothing, as it turns out
	if err := s.Lease().Reserve(t.Context(), demand(unit, false, "z")); err != nil {
		t.Error(err)
	}
}

// On a file system that is too small, unused images make room.
func TestReserveOnFullDisk(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1m,nr_inodes=60"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, root)
	fill := func(name string, size int64) {
		t.Helper()
		st := stage(t, s)
		if err := os.WriteFile(filepath.Join(st.Dir, "x"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		meta := metaOf("", name)
		meta.Size, meta.Inodes = size, 2
		layer, err := st.Commit(t.Context(), meta, nil)
		if err != nil {
			t.Fatal(err)
		}
		recordAs(t, s, name, []Layer{layer})
	}
	for _, name := range []string{"a", "b", "c"} {
		fill(name, 256<<10)
	}
	l := s.Lease()
	defer l.End()
	if err := l.Reserve(t.Context(), demand(400<<10, false, "p")); err != nil {
		t.Error(err)
	}
	if got := names(s); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("images are %q", got)
	}
	err := l.Reserve(t.Context(), demand(2<<20, false, "p"))
	if !errdefs.IsResourceExhausted(err) {
		t.Fatalf("error is %v", err)
	}
	for _, part := range []string{root, "at least 2.0 MiB,", "0 KiB free, 512.0 KiB in images that nothing uses"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	var many []string
	for i := range 30 {
		many = append(many, fmt.Sprint("layer ", i))
	}
	err = l.Reserve(t.Context(), demand(1, false, many...))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "30 layers need at least 90") {
		t.Errorf("error is %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	good, err := json.Marshal(record{LayerMeta: metaOf(metaOf("", "a").ChainID, "b")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"size":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := parseRecord(b)
		if err != nil {
			return
		}
		if err := rec.check(); err != nil || rec.Size < 0 || rec.Inodes < 0 {
			t.Errorf("took %s: %v", b, err)
		}
	})
}

func FuzzImageMeta(f *testing.F) {
	good, err := json.Marshal(ImageMeta{manifestOf("a"), []string{"a"}, manifestOf("b")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		var meta ImageMeta
		if json.Unmarshal(b, &meta) != nil || meta.check() != nil {
			return
		}
		if len(meta.References) == 0 || meta.Manifest.Validate() != nil {
			t.Errorf("took %s", b)
		}
	})
}
