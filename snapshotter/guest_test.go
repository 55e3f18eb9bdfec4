// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
	"github.com/coffer-cc/coffer/snapshotter/katavolume"
)

const kataType = "fuse.nydus-overlayfs-coffer"

func openGuest(t *testing.T, root string, o snapshotter.GuestOptions) *snapshotter.Snapshotter {
	t.Helper()
	sn, err := snapshotter.Open(root, nil, nil, snapshotter.Options{Route: snapshotter.Guest, Guest: o})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, sn.Close()) })
	return sn
}

// wantVolume checks a container's mounts as Kata reads them.
func wantVolume(t *testing.T, mounts []mount.Mount, want katavolume.Volume) {
	t.Helper()
	if len(mounts) != 1 || mounts[0].Type != kataType || mounts[0].Source != "overlay" {
		t.Fatalf("got mounts %v", mounts)
	}
	options := mounts[0].Options
	for i, prefix := range []string{"workdir=/", "upperdir=/", "lowerdir=/"} {
		if !strings.HasPrefix(options[i], prefix) {
			t.Errorf("option %d is %s", i, options[i])
		}
	}
	got, err := katavolume.Parse(options[len(options)-1])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// files lists what is in the folders of all snapshots.
func files(t *testing.T, root string) (list []string) {
	t.Helper()
	noError(t, filepath.WalkDir(filepath.Join(root, "snapshots"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			list = append(list, rel)
		}
		return err
	}))
	return list
}

// TestContainerdInGuestRoute pulls and runs through containerd's own metadata and
// unpacker, which has no layer to apply.
func TestContainerdInGuestRoute(t *testing.T) {
	t.Parallel()
	const ref = "127.0.0.1:5055/team/app:1"
	for name, annotate := range map[string]bool{"with the labels of CRI": true, "with a bare chain id only": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, img := newNodeWith(t, snapshotter.Options{Route: snapshotter.Guest}), newImage(t, name, 3)
			want := katavolume.Static()
			if annotate {
				want.Source = ref
				layers := make([]string, 3)
				for i := range layers {
					layers[i] = digest.FromString(fmt.Sprint("encrypted", name, i)).String()
				}
				want.ImagePull.Metadata = map[string]string{
					snapshotters.TargetRefLabel: ref, snapshotters.TargetManifestDigestLabel: img.desc.Digest.String(),
					snapshotters.TargetLayerDigestLabel: layers[2], snapshotters.TargetImageLayersLabel: strings.Join(layers, ","),
				}
			}
			for _, ns := range []string{"default", "k8s.io"} {
				ctx := inNamespace(t, ns)
				noError(t, n.pull(ctx, img, ref, annotate))
				mounts, err := n.db.Snapshotter("coffer").Prepare(ctx, "container", img.chains[2].String())
				noError(t, err)
				wantVolume(t, mounts, want)
				mounts, err = n.db.Snapshotter("coffer").Mounts(ctx, "container")
				noError(t, err)
				wantVolume(t, mounts, want)
			}
			if got := names(t, n.sn); len(got) != 5 {
				t.Errorf("got snapshots %v, want 3 layers and 2 containers", got)
			}
			if len(n.guest.pulls) != 0 || len(files(t, filepath.Join(n.root, "coffer"))) != 2 {
				t.Errorf("a layer was pulled: %v", n.guest.pulls)
			}
		})
	}
}

// TestContainerdAfterWipe deletes all that the snapshotter has, which containerd
// does not know of.
func TestContainerdAfterWipe(t *testing.T) {
	t.Parallel()
	const ref = "registry.example/app:1"
	for name, next := range map[string]func(ctx context.Context, n *node, img image) error{
		"pulled in another namespace": func(ctx context.Context, n *node, img image) error {
			return n.pull(namespaces.WithNamespace(ctx, "other"), img, ref, false)
		},
		"pulled again": func(ctx context.Context, n *node, img image) error {
			err := n.pull(ctx, img, ref, true)
			if errdefs.IsAlreadyExists(err) {
				return nil // the image record
			}
			return err
		},
		"run": func(ctx context.Context, n *node, img image) error {
			_, err := n.db.Snapshotter("coffer").Prepare(ctx, "container", img.chains[2].String())
			return err
		},
		"extended": func(ctx context.Context, n *node, _ image) error {
			return n.pull(ctx, newImage(t, "run", 4), "registry.example/more:1", false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, img := newNodeWith(t, snapshotter.Options{Route: snapshotter.Guest}), newImage(t, "run", 3)
			ctx := inNamespace(t, "default")
			noError(t, n.pull(ctx, img, ref, false))
			n.wipe(t)
			noError(t, next(ctx, n, img))
			mounts, err := n.db.Snapshotter("coffer").Prepare(ctx, "last", img.chains[2].String())
			noError(t, err)
			wantVolume(t, mounts, katavolume.Static())
			if _, err := n.db.GarbageCollect(ctx); err != nil {
				t.Error(err)
			}
			parent := ""
			for _, chain := range img.chains {
				parent = lookup(t, n.sn, chain, parent)
			}
			noError(t, n.pull(inNamespace(t, "another"), img, ref, false))
		})
	}
}

// wipe replaces the snapshotter by one with a new folder.
func (n *node) wipe(t *testing.T) {
	t.Helper()
	noError(t, n.sn.Close())
	root := filepath.Join(n.root, "coffer")
	noError(t, os.RemoveAll(root))
	finder := imagefinder.New(n.db.ContentStore(), metadata.NewImageStore(n.db), imagefinder.Options{})
	opened, err := snapshotter.Open(root, nil, finder, snapshotter.Options{Route: snapshotter.Guest})
	if err != nil {
		t.Fatal(err)
	}
	n.sn.Snapshotter = opened
}

func TestGuestMounts(t *testing.T) {
	t.Parallel()
	list := chains("mounts", 2)
	labels := snapshots.WithLabels(map[string]string{snapshotters.TargetRefLabel: "r/i:1"})
	for name, tc := range map[string]struct {
		options snapshotter.GuestOptions
		kind    string
		source  string
	}{
		"volume":  {snapshotter.GuestOptions{}, kataType, "r/i:1"},
		"static":  {snapshotter.GuestOptions{StaticVolume: true}, kataType, katavolume.UnknownSource},
		"plain":   {snapshotter.GuestOptions{PlainMounts: true}, "overlay", ""},
		"by path": {snapshotter.GuestOptions{Helper: "/opt/nydus-overlayfs-x"}, "fuse./opt/nydus-overlayfs-x", "r/i:1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sn := openGuest(t, t.TempDir(), tc.options)
			parent := ""
			for _, chain := range list {
				_, err := sn.Prepare(t.Context(), "extract "+chain.String(), parent, ref(chain), labels)
				wantError(t, err, errdefs.ErrAlreadyExists, "")
				parent = chain.String()
			}
			_, err := sn.Prepare(t.Context(), "key", parent)
			noError(t, err)
			mounts, err := sn.Mounts(t.Context(), "key")
			if err != nil || len(mounts) != 1 || mounts[0].Type != tc.kind || mounts[0].Source != "overlay" {
				t.Fatalf("got %v, %v", mounts, err)
			}
			var volumes []string
			for _, o := range mounts[0].Options {
				if strings.HasPrefix(o, katavolume.OptionPrefix) {
					v, err := katavolume.Parse(o)
					noError(t, err)
					volumes = append(volumes, v.Source)
				}
			}
			if got := strings.Join(volumes, " "); got != tc.source {
				t.Errorf("got the volumes %q, want %q", got, tc.source)
			}
			if tc.options.StaticVolume && !strings.HasSuffix(strings.Join(mounts[0].Options, " "), "7fX19") {
				t.Errorf("got options %q", mounts[0].Options)
			}
		})
	}
}

// What is not an image that the guest pulls is what it is in the local route.
func TestGuestRouteLeavesOthers(t *testing.T) {
	t.Parallel()
	sn := openGuest(t, t.TempDir(), snapshotter.GuestOptions{})
	list := chains("others", 2)
	pull(t, sn, list)
	for _, step := range []struct {
		name string
		do   func() ([]mount.Mount, error)
	}{
		{"no parent", func() ([]mount.Mount, error) { return sn.Prepare(t.Context(), "a", "") }},
		{"view", func() ([]mount.Mount, error) { return sn.View(t.Context(), "b", list[1].String()) }},
		{"view's mounts", func() ([]mount.Mount, error) { return sn.Mounts(t.Context(), "b") }},
		{"on an unpacked image", func() ([]mount.Mount, error) {
			noError(t, sn.Commit(t.Context(), "default/1/sha256:a", "a"))
			return sn.Prepare(t.Context(), "c", "default/1/sha256:a")
		}},
	} {
		mounts, err := step.do()
		if err != nil || len(mounts) != 1 || mounts[0].Type != "bind" && mounts[0].Type != "overlay" {
			t.Errorf("%s: got %v, %v", step.name, mounts, err)
		}
	}
	// A layer that was built on top of what only the guest has.
	_, err := sn.Prepare(t.Context(), "d", list[1].String())
	noError(t, err)
	noError(t, sn.Commit(t.Context(), "default/2/sha256:d", "d"))
	mounts, err := sn.Prepare(t.Context(), "e", "default/2/sha256:d")
	noError(t, err)
	wantVolume(t, mounts, katavolume.Static())
}

func TestGuestRouteIsIdempotent(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sn := openGuest(t, root, snapshotter.GuestOptions{})
	list := chains("twice", 3)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			parent := ""
			for _, chain := range list {
				_, err := sn.Prepare(t.Context(), fmt.Sprint("ns/", i, "/extract-", chain), parent, ref(chain))
				wantError(t, err, errdefs.ErrAlreadyExists, "")
				parent = chain.String()
			}
		})
	}
	wg.Wait()
	if got := names(t, sn); len(got) != 3 {
		t.Errorf("got %v", got)
	}
	_, err := sn.Prepare(t.Context(), "key", "", ref(list[1]))
	wantError(t, err, errdefs.ErrFailedPrecondition, "not the layer on parent")
	_, err = sn.Prepare(t.Context(), "key", "default/5/none", ref(list[1]))
	wantError(t, err, errdefs.ErrNotFound, "pull it again")
	_, err = sn.Prepare(t.Context(), "key", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: "x"}))
	wantError(t, err, errdefs.ErrInvalidArgument, "not the chain id")

	// The folders go away, the metadata does not.
	noError(t, os.RemoveAll(filepath.Join(root, "snapshots", "1")))
	if _, err := sn.Prepare(t.Context(), "key", list[2].String()); err != nil {
		t.Error(err)
	}
	noError(t, os.RemoveAll(filepath.Join(root, "snapshots", "2")))
	if _, err := sn.Mounts(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	noError(t, sn.Remove(t.Context(), "key"))
	for _, chain := range slices.Backward(list) {
		noError(t, sn.Remove(t.Context(), chain.String()))
	}
	noError(t, sn.Cleanup(t.Context()))
	if left := entries(t, root, "snapshots"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sn := openGuest(t, root, snapshotter.GuestOptions{})
	list := chains("accounts", 2)
	accounts := snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot/coffer.passwd": "app:x:7:8::/:\n",
		"containerd.io/snapshot/coffer.group":  "app:x:8:\n",
	})
	_, err := sn.Prepare(t.Context(), "a", "", ref(list[0]), accounts)
	wantError(t, err, errdefs.ErrAlreadyExists, "")
	for range 2 {
		if diff := cmp.Diff([]string{"snapshots/1/fs/etc/group", "snapshots/1/fs/etc/passwd"}, files(t, root)); diff != "" {
			t.Fatal(diff)
		}
		for name, want := range map[string]string{"passwd": "app:x:7:8::/:\n", "group": "app:x:8:\n"} {
			path := filepath.Join(root, "snapshots/1/fs/etc", name)
			st, err := os.Stat(path)
			if b, _ := os.ReadFile(path); err != nil || string(b) != want || st.Mode() != 0o644 {
				t.Errorf("%s: got %q, %v, %v", name, b, st, err)
			}
		}
		// They come back with the folder.
		noError(t, os.RemoveAll(filepath.Join(root, "snapshots")))
		noError(t, os.Mkdir(filepath.Join(root, "snapshots"), 0o700))
		_, err = sn.View(t.Context(), fmt.Sprint("view", len(names(t, sn))), list[0].String())
		noError(t, err)
	}
	large := snapshots.WithLabels(map[string]string{"containerd.io/snapshot/coffer.group": strings.Repeat("x", 4097)})
	_, err = sn.Prepare(t.Context(), "b", list[0].String(), ref(list[1]), large)
	wantError(t, err, errdefs.ErrInvalidArgument, "4097 bytes")
	if _, err := sn.Stat(t.Context(), list[1].String()); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestOneRouteForARoot(t *testing.T) {
	t.Parallel()
	reopen := func(root string, o snapshotter.Options) error {
		sn, err := snapshotter.Open(root, nil, nil, o)
		if err != nil {
			return err
		}
		return sn.Close()
	}
	local, remote := t.TempDir(), t.TempDir()
	for _, o := range []snapshotter.Options{{}, {Route: snapshotter.Local}} {
		noError(t, reopen(local, o))
		noError(t, reopen(remote, snapshotter.Options{Route: snapshotter.Guest}))
		wantError(t, reopen(remote, o), errdefs.ErrFailedPrecondition, `made for the route "guest": give the route "local" a root`)
		wantError(t, reopen(local, snapshotter.Options{Route: snapshotter.Guest}), errdefs.ErrFailedPrecondition, "of its own")
	}
	wantError(t, reopen(t.TempDir(), snapshotter.Options{Route: "moon"}), errdefs.ErrInvalidArgument, `use "local" or "guest"`)
	wantError(t, reopen(t.TempDir(), snapshotter.Options{Route: snapshotter.Guest, Guest: snapshotter.GuestOptions{Helper: "mount.coffer"}}),
		errdefs.ErrInvalidArgument, "begins with nydus-overlayfs")
}
