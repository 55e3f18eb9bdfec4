// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func TestRemoveReleasesLayer(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	list := chains("removed", 2)
	pull(t, sn, list)
	wantError(t, sn.Remove(t.Context(), list[0].String()), errdefs.ErrFailedPrecondition, "child")
	noError(t, sn.Remove(t.Context(), list[1].String()))
	if !g.has(list[1]) {
		t.Error("Remove waited for the guest")
	}
	noError(t, sn.Cleanup(t.Context()))
	if diff := cmp.Diff([]digest.Digest{list[1]}, g.removed); diff != "" {
		t.Error(diff)
	}
	if left := entries(t, root, "layers"); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
	if !g.has(list[0]) {
		t.Error("a layer in use was removed")
	}
}

func TestRemovalOutlivesGuestAndRestart(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	list := chains("later", 2)
	first, err := snapshotter.Open(root, g, g, snapshotter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pull(t, first, list)
	g.set(func(g *guest) { g.away = true })
	noError(t, first.Remove(t.Context(), list[1].String()))
	noError(t, first.Remove(t.Context(), list[0].String()))
	noError(t, first.Cleanup(t.Context()))
	if got := entries(t, root, "layers"); len(got) != 2 {
		t.Errorf("got journal %v, want both layers", got)
	}
	noError(t, first.Close())
	g.set(func(g *guest) { g.away = false })
	second := open(t, root, g)
	noError(t, second.Cleanup(t.Context()))
	if g.has(list[0]) || g.has(list[1]) {
		t.Error("layers are still in the guest")
	}
	if left := entries(t, root, "layers"); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
}

func TestStaleRemovalSparesNewPull(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := chains("again", 1)
	pull(t, sn, chain)
	g.set(func(g *guest) { g.away = true })
	noError(t, sn.Remove(t.Context(), chain[0].String()))
	noError(t, sn.Cleanup(t.Context()))
	g.set(func(g *guest) { g.away = false })
	pull(t, sn, chain)
	noError(t, sn.Cleanup(t.Context()))
	if !g.has(chain[0]) || len(g.removed) != 0 {
		t.Error("the stale removal was carried out")
	}
}

// A removal that meets a pull under way waits for the next Cleanup.
// A crash between the commit of a layer and the note of it leaves the note.
func TestNotedLayerInUseStays(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	list := chains("noted", 2)
	pull(t, sn, list)
	noError(t, os.WriteFile(filepath.Join(root, "layers", list[0].Encoded()), nil, 0o600))
	noError(t, sn.Cleanup(t.Context()))
	if !g.has(list[0]) {
		t.Error("cleanup removed a layer in use")
	}
	if left := entries(t, root, "layers"); len(left) > 0 {
		t.Errorf("the journal has %v", left)
	}
}

func TestRemovalDuringPull(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := chains("during", 1)
	pull(t, sn, chain)
	noError(t, sn.Remove(t.Context(), chain[0].String()))
	hold := make(chan struct{})
	g.set(func(g *guest) { g.hold[chain[0]] = hold })
	done := make(chan error, 1)
	go func() { done <- getLayer(t.Context(), sn, "key", "", chain[0]) }()
	<-g.holding
	noError(t, sn.Cleanup(t.Context()))
	if len(g.removed) != 0 {
		t.Error("a layer was removed while it was pulled")
	}
	close(hold)
	noError(t, <-done)
	noError(t, sn.Cleanup(t.Context()))
	if !g.has(chain[0]) {
		t.Error("the layer that was pulled again is gone")
	}
}

// A pull that meets a removal under way waits for it, and pulls anew.
func TestPullDuringRemoval(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := chains("wait", 1)
	pull(t, sn, chain)
	noError(t, sn.Remove(t.Context(), chain[0].String()))
	wait := make(chan struct{})
	g.set(func(g *guest) { g.remove = wait })
	cleaned, pulled := make(chan error, 1), make(chan error, 1)
	go func() { cleaned <- sn.Cleanup(t.Context()) }()
	<-g.holding
	go func() { pulled <- getLayer(t.Context(), sn, "key", "", chain[0]) }()
	close(wait)
	noError(t, <-cleaned)
	noError(t, <-pulled)
	if !g.has(chain[0]) || g.count(chain[0]) != 2 {
		t.Errorf("the layer is gone, or was not pulled again: %d pulls", g.count(chain[0]))
	}
}

func TestCleanupAfterCrash(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := chains("crash", 1)
	pull(t, sn, chain)
	// A crash can leave a folder whose id is not taken yet, one that was being
	// deleted, and a layer that was pulled but not committed.
	lost := digest.FromString("lost")
	for _, dir := range []string{"2/fs/etc", "7/work", "removed-9/fs"} {
		noError(t, os.MkdirAll(filepath.Join(root, "snapshots", dir), 0o755))
	}
	noError(t, os.MkdirAll(g.path(lost), 0o755))
	noError(t, os.WriteFile(filepath.Join(root, "layers", lost.Encoded()), nil, 0o600))
	noError(t, os.WriteFile(filepath.Join(root, "layers", "README"), nil, 0o600))
	if _, err := sn.Prepare(t.Context(), "takes the id 2", ""); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, root, "snapshots", "2", "fs"); len(got) != 0 {
		t.Errorf("a new snapshot has the leftovers %v", got)
	}
	noError(t, sn.Cleanup(t.Context()))
	if diff := cmp.Diff([]string{"1", "2"}, entries(t, root, "snapshots")); diff != "" {
		t.Error(diff)
	}
	if g.has(lost) || !g.has(chain[0]) {
		t.Error("cleanup kept the lost layer or removed the other")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	open(t, root, g)
	_, err := snapshotter.Open(root, g, g, snapshotter.Options{})
	wantError(t, err, errdefs.ErrFailedPrecondition, "stop the other coffer-snapshotter")
	for _, bad := range []string{"relative", "/with:colon", "/with,comma"} {
		_, err := snapshotter.Open(bad, g, g, snapshotter.Options{})
		wantError(t, err, errdefs.ErrInvalidArgument, "overlay mounts cannot express")
	}
}
