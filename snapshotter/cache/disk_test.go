// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/snapshotter/cache"
)

// has tells which layers are on disk, by their index.
func (n *node) has(p imagetest.Pushed) []int {
	n.t.Helper()
	var list []int
	for i, l := range p.Layers {
		if len(n.files("blobs/sha256/"+l.Digest.Encoded())) == 1 {
			list = append(list, i)
		}
	}
	return list
}

func (n *node) wantHas(p imagetest.Pushed, want ...int) {
	n.t.Helper()
	if got := n.has(p); !slices.Equal(got, want) {
		n.t.Errorf("on disk are layers %v, want %v", got, want)
	}
}

// path is the file of a layer.
func (n *node) path(p imagetest.Pushed, i int) string {
	n.t.Helper()
	list := n.files("blobs/sha256/" + p.Layers[i].Digest.Encoded())
	if len(list) != 1 {
		n.t.Fatalf("layer %d has files %v", i, list)
	}
	return list[0]
}

// The least recently used make room, before and after a restart.
func TestEviction(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 100_000, 100_000, 100_000, 100_000, 500_000)
	size := int64(len(p.Layers[0].Blob))
	opts := cache.Options{MaxBytes: 3*size + size/2}
	n := start(t, t.TempDir(), opts, r.Host())
	get := func(i int) {
		t.Helper()
		n.wants(p.Layers[i].Digest, p.Layers[i].Blob)
	}
	get(0)
	get(1)
	get(2)
	n.wantHas(p, 0, 1, 2)
	get(0)
	get(3)
	n.wantHas(p, 0, 2, 3)
	n.counts(map[string]float64{"evictions_total": 1, "evicted_bytes_total": float64(size), "blobs": 3, "bytes": float64(3 * size)})
	get(4) // larger than the limit: nothing goes for it
	n.wantHas(p, 0, 2, 3)
	n.stop()

	for i, at := range map[int]int{0: 2, 2: 3, 3: 1} {
		when := time.Now().Add(time.Duration(at-10) * time.Hour)
		if err := os.Chtimes(n.path(p, i), when, when); err != nil {
			t.Fatal(err)
		}
	}
	n = start(t, n.root, opts, r.Host())
	get(3) // the oldest is used, and that is noted
	if info, err := os.Stat(n.path(p, 3)); err != nil || time.Since(info.ModTime()) > time.Hour {
		t.Errorf("its use is not noted: %v, %v", info.ModTime(), err)
	}
	get(1)
	n.wantHas(p, 1, 2, 3)
	n.stop()
	opts.MaxBytes = size + 10 // less than there is
	n = start(t, n.root, opts, r.Host())
	if left := n.has(p); len(left) != 1 {
		t.Errorf("on disk are layers %v", left)
	}
}

// What a crash, or somebody, did to the folder is found at the start or when it
// is used for the first time.
func TestStart(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 1<<20, 1<<20, 1<<20, 1000)
	n := start(t, t.TempDir(), cache.Options{}, r.Host())
	for _, l := range p.Layers {
		n.wants(l.Digest, l.Blob)
	}
	n.stop()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Truncate(n.path(p, 0), 1000))
	for _, i := range []int{1, 3} {
		b := bytes.Clone(p.Layers[i].Blob)
		b[len(b)-1] ^= 1
		must(os.WriteFile(n.path(p, i), b, 0o600))
	}
	blobs := filepath.Dir(n.path(p, 1))
	for _, name := range []string{"x", "sha256", p.Layers[2].Digest.Encoded(), p.Layers[2].Digest.Encoded() + ".01"} {
		must(os.WriteFile(filepath.Join(blobs, name), []byte("x"), 0o600))
	}
	must(os.Mkdir(filepath.Join(blobs, p.Layers[0].Digest.Encoded()+".4096"), 0o700))
	must(os.WriteFile(filepath.Join(n.root, "partial", "x"), []byte("x"), 0o600))

	n = start(t, n.root, cache.Options{}, r.Host())
	n.wantHas(p, 1, 2, 3)
	if left := append(n.files("partial/"), n.files("blobs/sha256/")...); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
	for _, i := range []int{1, 3} {
		l := p.Layers[i]
		if got := n.get(l.Digest); got.err == nil && !bytes.Equal(got.body, l.Blob) {
			t.Errorf("layer %d, which has changed on disk, ends as if it were right: %d, %d bytes", i, got.status, len(got.body))
		}
	}
	for _, l := range p.Layers {
		n.wants(l.Digest, l.Blob)
	}
	n.wantHas(p, 0, 1, 2, 3)
	if wrong := n.metrics()["wrong_total"]; wrong != 2 {
		t.Errorf("%v blobs were wrong", wrong)
	}
	// A file that goes away, or gets another size, while it is served.
	must(os.Remove(n.path(p, 0)))
	must(os.Truncate(n.path(p, 2), 5))
	n.wants(p.Layers[0].Digest, p.Layers[0].Blob)
	n.wants(p.Layers[2].Digest, p.Layers[2].Blob)
}

// Bytes that have not been compared for long are compared again.
func TestRecheck(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 2<<20)
	l := p.Layers[0]
	n := start(t, t.TempDir(), cache.Options{Recheck: time.Nanosecond}, r.Host())
	n.wants(l.Digest, l.Blob)
	n.wants(l.Digest, l.Blob)
	b := bytes.Clone(l.Blob)
	b[5] ^= 1
	if err := os.WriteFile(n.path(p, 0), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := n.get(l.Digest); got.err == nil && !bytes.Equal(got.body, l.Blob) {
		t.Error("changed bytes end as if they were right")
	}
	n.wants(l.Digest, l.Blob)
	n.counts(map[string]float64{"wrong_total": 1})
}

// mount mounts a small file system.
func mount(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
			t.Fatalf("mount: %v, but REQUIRE names root", err)
		}
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A disk that is full, though the limit is not reached, costs old blobs; what
// does not fit even so is passed through.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := mount(t, "4m")
	r := imagetest.New(t)
	p := push(t, r, 3<<20, 2<<20, 5<<20)
	n := start(t, dir, cache.Options{}, r.Host())
	n.wants(p.Layers[0].Digest, p.Layers[0].Blob)
	n.wants(p.Layers[1].Digest, p.Layers[1].Blob)
	n.wantHas(p, 1)
	n.wants(p.Layers[2].Digest, p.Layers[2].Blob)
	n.wants(p.Layers[2].Digest, p.Layers[2].Blob)
	n.wantHas(p)
	n.counts(map[string]float64{"evictions_total": 2, "requests_total direct": 2, "bytes": 0})
	if left := n.files("partial/"); len(left) != 0 {
		t.Errorf("partial blobs: %v", left)
	}
}

// A disk that gets full in the middle of a blob of unknown size: the answer goes
// on from the registry.
func TestDiskFullInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := mount(t, "4m")
	g := newGated(t, 6<<20)
	g.chunked = true
	n := start(t, dir, cache.Options{}, g.host)
	body := n.begin(g.digest, 0)
	b := make([]byte, 3<<20-1)
	if _, err := io.ReadFull(body, b); err != nil {
		t.Fatal(err)
	}
	close(g.gate)
	rest, err := io.ReadAll(body)
	if b = append(b, rest...); err != nil || !bytes.Equal(b, g.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	n.counts(map[string]float64{"blobs": 0, "bytes": 0})
}

// A folder in which nothing can be made any more.
func TestFolderGone(t *testing.T) {
	t.Parallel()
	r := imagetest.New(t)
	p := push(t, r, 1000)
	n := start(t, t.TempDir(), cache.Options{}, r.Host())
	if err := os.RemoveAll(n.root); err != nil {
		t.Fatal(err)
	}
	n.wants(p.Layers[0].Digest, p.Layers[0].Blob)
	n.counts(map[string]float64{"requests_total direct": 1, "blobs": 0, "bytes": 0})
}
