// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// A world is what a puller needs, and the images that there are. It is sent to
// the processes that get killed.
type world struct {
	Host   string
	KEK    []byte
	Images []string
	Tops   []digest.Digest // the uppermost layers of Images
	Alone  []string        // images of one layer, each one of those above
	Root   string          // of one puller: its store, writable layers and bundles

	registry *imagetest.Registry // of the parent
	pushed   []imagetest.Pushed
}

func (w world) UnwrapKey(_ context.Context, packet []byte) ([]byte, error) {
	p, err := keywrap.ParsePacket(packet)
	if err != nil {
		return nil, err
	}
	return keywrap.Unwrap(w.KEK, p)
}

func (w world) path(elem ...string) string {
	return filepath.Join(append([]string{w.Root}, elem...)...)
}

// puller makes the puller of a process.
func (w world) puller(s *store.Store) (*imagepull.Puller, error) {
	client, err := registry.NewClient(registry.Options{Insecure: []string{w.Host}})
	if err != nil {
		return nil, err
	}
	p := imagepull.NewPuller(client, w, s, imagepull.Options{Scratch: w.path("scratch"), RetryDelay: time.Millisecond, Tries: 2})
	return p, p.Sweep()
}

// newWorld is a registry with images that share layers.
func newWorld(t *testing.T) (world, map[digest.Digest]string) {
	t.Helper()
	requireRoot(t)
	r, key := imagetest.New(t), imagetest.NewKey(t, "kbs:///default/key/1")
	layer := func(c imagetest.Compression, encrypted bool, prefix string, files int) imagetest.Layer {
		l := imagetest.Layer{Compression: c, Files: map[string]string{prefix + "/": ""}}
		for i := range files {
			l.Files[fmt.Sprintf("%s/dir%d/file%d", prefix, i%4, i)] = strings.Repeat(prefix, 1+300*(i%7))
		}
		if encrypted {
			l.Key = &key
		}
		return fixed(t, l)
	}
	base, libs := layer(imagetest.Gzip, true, "usr", 25), layer(imagetest.Zstd, true, "usr/lib", 15)
	apps := []imagetest.Layer{
		layer(imagetest.None, false, "opt", 10), layer(imagetest.Gzip, true, "usr/lib/dir1", 10),
		fixed(t, imagetest.Layer{Compression: imagetest.Zstd, Files: map[string]string{"usr/.wh.dir1": "", "usr/lib/dir2/.wh..wh..opq": "", "usr/lib/dir2/new": "new"}}),
	}
	w := world{Host: r.Host(), KEK: key.KEK, registry: r}
	for i, l := range append(apps, base, libs) {
		p := r.Push(t, fmt.Sprintf("crash/alone:v%d", i), imagetest.Image{Layers: []imagetest.Layer{l}})
		w.Alone = append(w.Alone, p.Reference)
	}
	for i, layers := range [][]imagetest.Layer{
		{base}, {base, libs}, {base, libs, apps[0]}, {base, libs, apps[1], apps[2]}, {base, apps[2], libs}, {apps[0], base, apps[0]},
	} {
		image := imagetest.Image{Layers: layers, Config: ocispec.ImageConfig{User: "0", Cmd: []string{"/x"}}}
		p := r.Push(t, fmt.Sprintf("crash/image:v%d", i), image)
		w.Images, w.Tops, w.pushed = append(w.Images, p.Reference), append(w.Tops, p.Chain()), append(w.pushed, p)
	}
	return w, w.expected(t)
}

// fixed is a layer that is the same in each image.
func fixed(t *testing.T, l imagetest.Layer) imagetest.Layer {
	t.Helper()
	built := imagetest.New(t).Push(t, "fixed/layer:v1", imagetest.Image{Layers: []imagetest.Layer{l}})
	l.Tar, l.Files = built.Layers[0].Tar, nil
	return l
}

// expected pulls each image where nothing disturbs it, and returns what its
// layers are by their chain ids, which of those alone are their diff ids.
func (w world) expected(t *testing.T) map[digest.Digest]string {
	t.Helper()
	w.Root = tmpfs(t, "size=64m")
	s, err := store.Open(w.path("store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	trees := make(map[digest.Digest]string)
	for i, image := range append(w.Alone, w.Images...) {
		bundle := w.path("bundles", fmt.Sprint(i))
		if _, err := p.PullImage(t.Context(), image, bundle); err != nil {
			t.Fatal(err)
		}
		if err := p.RemoveImage(t.Context(), bundle); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range s.Images() {
		for _, chainID := range i.Layers {
			layer, _ := s.Layer(chainID)
			trees[chainID] = treeOf(t, layer.Path)
		}
	}
	p.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return trees
}

// treeOf is everything of a directory that an image's user can see, but for the
// times of directories.
func treeOf(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d", strings.TrimPrefix(path, root), st.Mode, st.Uid, st.Gid, st.Rdev)
		var value [8]byte
		if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", value[:]); err == nil {
			fmt.Fprintf(&b, " opaque=%s", value[:n])
		}
		switch {
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(content)
			fmt.Fprintf(&b, " %d %s", st.Mtim.Nano(), hex.EncodeToString(sum[:8]))
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Errorf("tree of %s: %v", root, err)
	}
	return b.String()
}

// checkStore looks at a store, opened after a crash, with nobody's help.
func (w world) checkStore(t *testing.T, s *store.Store, trees map[digest.Digest]string) {
	t.Helper()
	if left := names(t, w.path("store", "staging")); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
	dirs := names(t, w.path("store", "layers"))
	for _, dir := range dirs {
		b, err := os.ReadFile(w.path("store", "layers", dir, "meta.json"))
		if err != nil {
			t.Error(err)
			continue
		}
		var meta store.LayerMeta
		if err := json.Unmarshal(b, &meta); err != nil {
			t.Error(err)
		}
		want, known := trees[meta.ChainID]
		if got := treeOf(t, w.path("store", "layers", dir, "fs")); !known || got != want {
			t.Errorf("layer %s is not whole: it has %d lines, want %d", meta.ChainID, strings.Count(got, "\n"), strings.Count(want, "\n"))
		}
		if _, found := s.Layer(meta.ChainID); !found {
			t.Errorf("layer %s is not visible, but there", meta.ChainID)
		}
	}
	parked := w.parked(t)
	for dir, content := range parked {
		want, known := trees[content.DiffID]
		if got := treeOf(t, w.path("store", "parked", dir, "fs")); !known || got != want || !s.Parked(content) {
			t.Errorf("parked layer %v is not whole: it has %d lines, want %d", content, strings.Count(got, "\n"), strings.Count(want, "\n"))
		}
	}
	usage, err := s.Usage()
	if err != nil || usage.Layers != len(dirs) || usage.Parked != len(parked) {
		t.Errorf("%d layers are visible of %d, %d parked of %d: %v", usage.Layers, len(dirs), usage.Parked, len(parked), err)
	}
	if n := len(names(t, w.path("store", "images"))); n != usage.Images {
		t.Errorf("%d images are visible of %d", usage.Images, n)
	}
	for _, i := range s.Images() {
		for _, chainID := range i.Layers {
			if _, found := s.Layer(chainID); !found {
				t.Errorf("image %s has no layer %s", i.Manifest, chainID)
			}
		}
	}
	if n := len(names(t, w.path("store", "holds"))); n != len(s.Holders()) {
		t.Errorf("%d holders of %d", len(s.Holders()), n)
	}
}

// checkBundles compares what is mounted with what is held and written.
func (w world) checkBundles(t *testing.T, s *store.Store) {
	t.Helper()
	var mounted []string
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.Root))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		if m.Mountpoint != w.Root {
			mounted = append(mounted, filepath.Dir(m.Mountpoint))
		}
	}
	slices.Sort(mounted)
	if holders := s.Holders(); !slices.Equal(mounted, holders) {
		t.Errorf("mounted are %v, held by %v", mounted, holders)
	}
	if scratch := names(t, w.path("scratch")); len(scratch) != len(mounted) {
		t.Errorf("%d writable layers of %d bundles", len(scratch), len(mounted))
	}
	for _, bundle := range names(t, w.path("bundles")) {
		there := slices.Contains(mounted, w.path("bundles", bundle))
		want := 0
		if there {
			want = 2 // config.json, rootfs
		}
		if got := names(t, w.path("bundles", bundle)); len(got) != want {
			t.Errorf("bundle %s, mounted %t, has %v", bundle, there, got)
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	list := make([]string, 0, len(entries))
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "root", "owners, devices, trusted attributes and mounts need root")
	}
}

func skip(t testing.TB, what, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), what) {
		t.Fatalf("%s, and REQUIRE names %s", reason, what)
	}
	t.Skip(reason)
}

func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// unmount waits for those who look at the mounts of the machine to leave.
func unmount(t testing.TB, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	for range 100 {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		<-time.After(10 * time.Millisecond)
		err = unix.Unmount(dir, 0)
	}
	if err != nil {
		t.Errorf("something is left in %s: %v", dir, err)
	}
}

// loopDevice is a block device of its own, with an empty ext4.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	disk := filepath.Join(tmpfs(t, fmt.Sprintf("size=%d", size+(1<<20))), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		skip(t, "ext4", "no ext4 can be made: "+err.Error()+string(out))
	}
	device, err := exec.Command("losetup", "-f", "--show", disk).CombinedOutput()
	if err != nil {
		skip(t, "ext4", "no loop device: "+err.Error()+string(device))
	}
	name := strings.TrimSpace(string(device))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return name
}

// parked are the contents that are parked, by their directories.
func (w world) parked(t *testing.T) map[string]store.Content {
	t.Helper()
	contents := make(map[string]store.Content)
	for _, dir := range names(t, w.path("store", "parked")) {
		b, err := os.ReadFile(w.path("store", "parked", dir, "parked.json"))
		var content store.Content
		if err := errors.Join(err, json.Unmarshal(b, &content)); err != nil {
			t.Error(err)
		}
		contents[dir] = content
	}
	return contents
}

// chainIDs are those of the layers on the disk.
func (w world) chainIDs(t *testing.T) []digest.Digest {
	t.Helper()
	var list []digest.Digest
	for _, dir := range names(t, w.path("store", "layers")) {
		b, err := os.ReadFile(w.path("store", "layers", dir, "meta.json"))
		var meta store.LayerMeta
		if err := errors.Join(err, json.Unmarshal(b, &meta)); err != nil {
			t.Error(err)
		}
		list = append(list, meta.ChainID)
	}
	return list
}
