// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/bundle"
)

// As many layers as overlayfs takes, in memory and on a disk.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]func(*testing.T) string{"tmpfs": workDir, "ext4": diskDir} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := where(t)
			var layers []string
			for i := range 499 {
				// As long as a chain id makes them, so that one page is not enough.
				layers = append(layers, layer(t, filepath.Join(work, strings.Repeat("l", 80), fmt.Sprint(i)),
					map[string]string{"top": fmt.Sprint(i), fmt.Sprintf("of-%d", i): "x"}))
			}
			// Beyond what fsconfig takes, and with mount(2)'s separators.
			layers = append(layers, layer(t, filepath.Join(work, strings.Repeat("x", 200), strings.Repeat("y:,", 40)), map[string]string{"top": "last"}))
			b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
			if err := b.Create(dir, manifest, append(layers, layers[0]), ocispec.Image{}, bundle.Accounts{}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "501 layers") {
				t.Errorf("too many: %v", err)
			}
			checkGone(t, work, dir)
			if err := b.Create(dir, manifest, layers, ocispec.Image{}, bundle.Accounts{}); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(filepath.Join(dir, "rootfs", "top")); string(got) != "last" {
				t.Errorf("got %q", got)
			}
			if entries, err := os.ReadDir(filepath.Join(dir, "rootfs")); err != nil || len(entries) != 500 {
				t.Errorf("got %d files: %v", len(entries), err)
			}
			// What other programs read their mounts with has a limit for one line.
			if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(mounts) != 1 {
				t.Errorf("mounts: %v, %v", mounts, err)
			}
			if got, err := bundle.New("").Complete(dir); err != nil || got != manifest {
				t.Errorf("another Bundler finds %q, %v", got, err)
			}
			if err := b.Remove(dir); err != nil {
				t.Fatal(err)
			}
			checkGone(t, work, dir)
		})
	}
}

// A layer that replaces the root directory hides all that is below.
func TestOpaqueRoot(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	var layers []string
	for _, name := range []string{"bottom", "middle", "top"} {
		layers = append(layers, layer(t, filepath.Join(work, name), map[string]string{name: "x"}))
	}
	if err := unix.Setxattr(layers[1], "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
	if err := b.Create(dir, manifest, layers, ocispec.Image{}, bundle.Accounts{}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "rootfs"))
	if err != nil || len(entries) != 2 || entries[0].Name() != "middle" || entries[1].Name() != "top" {
		t.Errorf("got %v, %v", entries, err)
	}
	if err := b.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

// What a Bundler made is found again by another, of another process, and told
// from what others made.
func TestMounted(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	l := layer(t, filepath.Join(work, "l"), map[string]string{"a": "a"})
	dir, scratch := filepath.Join(work, "bundle"), filepath.Join(work, "scratch")
	notFound := func(when string) {
		t.Helper()
		for _, ask := range []func(string) (string, error){
			func(d string) (string, error) { m, err := bundle.New(scratch).Mounted(d); return m.String(), err },
			func(d string) (string, error) { m, err := bundle.New(scratch).Complete(d); return m.String(), err },
		} {
			if m, err := ask(dir); !errdefs.IsNotFound(err) {
				t.Errorf("%s: %s %v", when, m, err)
			}
		}
	}
	notFound("nothing")
	if err := bundle.New(scratch).Create(dir, manifest, []string{l}, ocispec.Image{}, bundle.Accounts{}); err != nil {
		t.Fatal(err)
	}
	other := bundle.New(scratch)
	if m, err := other.Complete(dir); m != manifest || err != nil {
		t.Errorf("got %q, %v", m, err)
	}
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if m, err := other.Complete(dir); !errdefs.IsNotFound(err) {
		t.Errorf("without config.json it is complete: %q, %v", m, err)
	}
	if m, err := other.Mounted(dir); m != manifest || err != nil {
		t.Errorf("got %q, %v", m, err)
	}
	if err := other.Create(dir, manifest, []string{l}, ocispec.Image{}, bundle.Accounts{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("mounted over a mount: %v", err)
	}
	if err := other.Remove(dir); err != nil {
		t.Fatal(err)
	}
	checkGone(t, work, dir)
	notFound("removed")
}

// The mount of somebody else at rootfs is neither covered nor taken away.
func TestForeignMount(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	l := layer(t, filepath.Join(work, "l"), map[string]string{"a": "a"})
	b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	bind(t, rootfs, mounted(t, "tmpfs", "tmpfs", "size=1m"), 0)
	if err := b.Create(dir, manifest, []string{l}, ocispec.Image{}, bundle.Accounts{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("covered it: %v", err)
	}
	if err := b.Remove(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("took it away: %v", err)
	}
	if m, err := b.Mounted(dir); !errdefs.IsNotFound(err) {
		t.Errorf("took it for its own: %q, %v", m, err)
	}
}

// Wherever the making of a bundle fails, nothing stays mounted.
func TestNoPlaceForTheBundle(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, work, dir string)
		class   func(error) bool
	}{
		"bundle is a file": {func(t *testing.T, _, dir string) {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsInternal},
		"bundle is read-only": {func(t *testing.T, work, dir string) {
			if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(filepath.Join(work, "ro"), 0o755)); err != nil {
				t.Fatal(err)
			}
			bind(t, dir, filepath.Join(work, "ro"), readOnly)
		}, errdefs.IsInternal},
		"no space for config.json": {func(t *testing.T, _, dir string) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			full := mounted(t, "tmpfs", "tmpfs", "size=4k")
			if err := os.WriteFile(filepath.Join(full, "fill"), make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			bind(t, dir, full, 0)
		}, errdefs.IsResourceExhausted},
		"no inode for config.json": {func(t *testing.T, _, dir string) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			bind(t, dir, mounted(t, "tmpfs", "tmpfs", "nr_inodes=2"), 0)
		}, errdefs.IsResourceExhausted},
		"no directory for the writable layer": {func(t *testing.T, work, _ string) {
			if err := os.WriteFile(filepath.Join(work, "scratch"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsInternal},
		"files in rootfs": {func(t *testing.T, _, dir string) {
			layer(t, filepath.Join(dir, "rootfs"), map[string]string{"x": "precious"})
		}, errdefs.IsAlreadyExists},
		"config.json": {func(t *testing.T, _, dir string) {
			layer(t, dir, map[string]string{"config.json": "precious"})
		}, errdefs.IsAlreadyExists},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := workDir(t)
			l, dir := layer(t, filepath.Join(work, "l"), map[string]string{"a": "a"}), filepath.Join(work, "bundle")
			tc.prepare(t, work, dir)
			b := bundle.New(filepath.Join(work, "scratch"))
			if err := b.Create(dir, manifest, []string{l}, ocispec.Image{}, bundle.Accounts{}); err == nil || !tc.class(err) {
				t.Errorf("got %v", err)
			}
			if m, err := b.Mounted(dir); !errdefs.IsNotFound(err) {
				t.Errorf("%s is mounted: %v", m, err)
			}
			for _, precious := range []string{"config.json", "rootfs/x"} {
				if got, err := os.ReadFile(filepath.Join(dir, precious)); err == nil && string(got) != "precious" {
					t.Errorf("%s has %q", precious, got)
				}
			}
			if entries, err := os.ReadDir(filepath.Join(work, "scratch")); err == nil && len(entries) > 0 {
				t.Errorf("a writable layer is left: %v", entries)
			}
		})
	}
}
