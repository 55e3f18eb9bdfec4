// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// TestNoSpace pulls and mounts an image on file systems of every size, in bytes
// or inodes, on which it does not fit, and so fails at every write that there
// is. Nothing of it stays, and once there is room the same processes go on.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	w, trees := newWorld(t)
	for name, sizes := range map[string]struct {
		option      string
		from, steps int
	}{
		"blocks": {"size=%dk", 4, 8},
		"inodes": {"nr_inodes=%d", 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failed, unit := 0, sizes.from
			for ; ; unit += sizes.steps {
				err := w.pullInto(t, trees, fmt.Sprintf(sizes.option, unit))
				if err == nil {
					break
				}
				failed++
				if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), "at least") {
					t.Errorf("of %d: %v", unit, err)
				}
				if t.Failed() {
					return
				}
			}
			t.Logf("fits into %s, failed below in %d ways", fmt.Sprintf(sizes.option, unit), failed)
			if failed < 20 {
				t.Errorf("only %d sizes were too small", failed)
			}
		})
	}
}

// pullInto pulls an image into a file system made with an option, and again when
// that is larger. It returns the first error.
func (w world) pullInto(t *testing.T, trees map[digest.Digest]string, option string) (first error) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, option); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, dir)
	w.Root = dir
	grow := func() {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=32m,nr_inodes=10000"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := store.Open(w.path("store"), store.Options{})
	if err != nil {
		first = err
		if !errors.Is(err, unix.ENOSPC) {
			return err
		}
		if first = errdefs.ErrResourceExhausted.WithMessage(err.Error() + "at least"); true {
			grow()
		}
		if s, err = store.Open(w.path("store"), store.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	image, bundle := w.Images[3], w.path("bundles", "0")
	if _, err := p.PullImage(t.Context(), image, bundle); err != nil {
		first = err
		w.checkStore(t, s, trees)
		if n := len(w.parked(t)); n > 0 {
			t.Errorf("%d layers are parked where space was missing", n)
		}
		w.checkBundles(t, s)
		grow()
		if _, err := p.PullImage(t.Context(), image, bundle); err != nil {
			t.Errorf("with enough space: %v", err)
		}
	}
	w.checkStore(t, s, trees)
	w.checkBundles(t, s)
	if len(s.Images()) != 1 && first == nil {
		t.Error("the image is not recorded")
	}
	w.removeAll(t, p, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return first
}

// On a file system that became read-only everything fails, cleanly, and works
// again when that ends.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	w, trees := newWorld(t)
	w.Root = tmpfs(t, "size=32m")
	s, err := store.Open(w.path("store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	mounted := w.path("bundles", "0")
	if _, err := p.PullImage(t.Context(), w.Images[2], mounted); err != nil {
		t.Fatal(err)
	}
	if err := p.RemoveImage(t.Context(), mounted); err != nil {
		t.Fatal(err)
	}
	top := s.Images()[0].Top
	remount := func(flags uintptr) {
		t.Helper()
		err := unix.Mount("", w.Root, "", unix.MS_REMOUNT|flags, "")
		for i := 0; i < 100 && errors.Is(err, unix.EBUSY); i++ { // until the overlay is quite gone
			<-time.After(10 * time.Millisecond)
			err = unix.Mount("", w.Root, "", unix.MS_REMOUNT|flags, "")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	gcErr := func() error { _, err := s.RemoveImage(t.Context(), s.Images()[0].Manifest); return err }()
	claimErr := func() error { _, err := s.Claim(top); return err }()
	_, pullErr := p.PullImage(t.Context(), w.Images[3], w.path("bundles", "1"))
	_, againErr := p.PullImage(t.Context(), w.Images[2], mounted)
	for what, err := range map[string]error{
		"RemoveImage": gcErr, "Claim": claimErr, "Hold": s.Hold("x", top), "Remove": s.Remove(top),
		"PullImage": pullErr, "PullImage of what is there": againErr,
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	remount(0)
	w.checkStore(t, s, trees)
	w.checkBundles(t, s)
	if _, err := p.PullImage(t.Context(), w.Images[3], w.path("bundles", "1")); err != nil {
		t.Error(err)
	}
	w.checkBundles(t, s)
	w.removeAll(t, p, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

const (
	powerCuts = 25

	// The kernel's FS_IOC_SHUTDOWN: the file system stops at once, and what is
	// only in memory never gets to the disk.
	shutdownIoctl      = 0x8004587d
	shutdownNoLogFlush = 2
)

// TestPowerCuts cuts the power at random moments of pulls: what had not got to
// the disk is lost, and every mount with it. What the store shows after the next
// boot is whole, and has what was flushed.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	w, trees := newWorld(t)
	device := loopDevice(t, 48<<20)
	w.Root = t.TempDir()
	t.Cleanup(func() { w.unmountAll(t) })
	var kept []digest.Digest // layers that were flushed, and nobody removes
	seen := 0
	for boot := range powerCuts {
		if err := unix.Mount(device, w.Root, "ext4", 0, ""); err != nil {
			t.Fatal(err)
		}
		s, err := store.OpenBooted(w.path("store"), store.Options{MaxBytes: 300 << 10}, fmt.Sprint("boot ", boot))
		if err != nil {
			t.Fatal(err)
		}
		w.checkStore(t, s, trees)
		if n := len(w.parked(t)); n > 0 {
			t.Errorf("boot %d: %d layers parked before it", boot, n)
		}
		for _, chainID := range kept {
			if layer, found := s.Layer(chainID); !found {
				t.Errorf("boot %d: a flushed layer is lost: %s", boot, layer.ChainID)
			}
		}
		if holders := s.Holders(); len(holders) > 0 {
			t.Errorf("boot %d: held by %v", boot, holders)
		}
		seen += len(names(t, w.path("store", "layers")))
		p, err := w.puller(s)
		if err != nil {
			t.Fatal(err)
		}
		if kept == nil {
			kept = w.keep(t, p, s)
			w.cutPower(t, func(context.Context) {}) // at once: nothing but Sync took it to the disk
		} else {
			w.cutPower(t, func(ctx context.Context) { w.work(ctx, p, s) })
		}
		p.Close()
		if err := s.Abandon(); err != nil {
			t.Error(err)
		}
		w.unmountAll(t)
		awaitUnused(t, device)
		if t.Failed() {
			t.Fatalf("in boot %d", boot)
		}
	}
	t.Logf("%d layers seen after boots", seen)
	if seen <= powerCuts*len(kept) {
		t.Error("no layer was flushed in time")
	}
}

// keep claims an image's layers, flushes them, and returns them.
func (w world) keep(t *testing.T, p *imagepull.Puller, s *store.Store) []digest.Digest {
	t.Helper()
	if _, _, _, err := p.PullLayer(t.Context(), w.Images[1], "", w.Tops[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	var layers []digest.Digest
	for next := w.Tops[1]; next != ""; {
		layer, _ := s.Layer(next)
		layers, next = append(layers, next), layer.Parent
	}
	return layers
}

// cutPower ends the disk in the middle of some work.
func (w world) cutPower(t *testing.T, work func(context.Context)) {
	t.Helper()
	disk, err := os.Open(w.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { work(ctx) })
	<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
	if err := unix.IoctlSetPointerInt(int(disk.Fd()), shutdownIoctl, shutdownNoLogFlush); err != nil {
		t.Errorf("cut the power: %v", err)
	}
	<-time.After(5 * time.Millisecond) // the programs run on for a moment
	cancel()
	wg.Wait()
}

// work is what a puller does, until ctx ends. Errors are those of the disk.
func (w world) work(ctx context.Context, p *imagepull.Puller, s *store.Store) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = w.mountAndUnmount(ctx, p, w.path("bundles", "0")) })
	wg.Go(func() { _ = w.claimAndRemove(ctx, p, 2) }) // the first two are kept
	wg.Go(func() { s.Run(ctx) })
	for ctx.Err() == nil {
		w.writeBack()
		_, _ = s.GC(ctx)
		<-time.After(time.Millisecond)
	}
}

// writeBack is the kernel, which takes file by file to the disk, in any order:
// here the names of all files, and the content of one.
func (w world) writeBack() {
	dirs, err := os.ReadDir(w.path("store", "layers"))
	if err != nil || len(dirs) == 0 {
		return
	}
	f, err := os.Open(w.path("store", "layers", dirs[rand.IntN(len(dirs))].Name(), "meta.json"))
	if err != nil {
		return
	}
	_ = errors.Join(f.Sync(), f.Close()) // it may be gone, or the disk
}

// awaitUnused waits until the kernel has let go of a disk, which those hold up
// who copied the mounts of the machine.
func awaitUnused(t *testing.T, device string) {
	t.Helper()
	for range 1000 {
		if !slices.Contains(names(t, "/proc/fs/ext4"), filepath.Base(device)) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("%s is still in use", device)
}

// unmountAll takes away all mounts, as the power cut did.
func (w world) unmountAll(t *testing.T) {
	t.Helper()
	w.unmountInside(t)
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(w.Root))
	if err != nil {
		t.Fatal(err)
	}
	for range mounts {
		unmount(t, w.Root)
	}
}

// unmountInside takes away all bundles' mounts.
func (w world) unmountInside(t *testing.T) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.Root))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint != w.Root {
			unmount(t, m.Mountpoint)
		}
	}
}
