// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// Prepare never waits for the guest, and who only lists snapshots does not
// either: of those who carry no lease, one waits for each Prepare.
func TestOnlyTheUnpackerWaits(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	chain := digest.FromString("slow")
	hold := make(chan struct{})
	g.hold[chain] = hold
	stat := func(ctx context.Context) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := sn.Stat(ctx, chain.String())
			done <- err
		}()
		<-g.holding
		return done
	}
	var waiting []<-chan error
	for _, key := range []string{"one/1/extract", "two/1/extract"} {
		_, err := sn.Prepare(t.Context(), key, "", ref(chain))
		wantError(t, err, errdefs.ErrAlreadyExists, "")
		waiting = append(waiting, stat(t.Context()))
	}
	waiting = append(waiting, stat(leases.WithLease(t.Context(), "pull")))
	if info, err := sn.Stat(t.Context(), chain.String()); err != nil || info.Kind != snapshots.KindCommitted {
		t.Errorf("listing: got %+v, %v", info, err)
	}
	if _, err := sn.Usage(t.Context(), chain.String()); !errdefs.IsNotFound(err) {
		t.Errorf("usage of a layer that is not here: %v, want NotFound, which is asked again", err)
	}
	close(hold)
	for _, done := range waiting {
		noError(t, <-done)
	}
	usage, err := sn.Usage(t.Context(), chain.String())
	if want := (snapshots.Usage{Size: 4096, Inodes: 2}); err != nil || usage != want {
		t.Errorf("got usage %+v, %v, want %+v", usage, err, want)
	}
}

// A layer that nobody has waited for comes with the first container.
func TestContainerGetsPendingLayers(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	list := chains("pending", 3)
	parent := ""
	for _, chain := range list {
		_, err := sn.Prepare(t.Context(), "extract "+chain.String(), parent, ref(chain))
		wantError(t, err, errdefs.ErrAlreadyExists, "")
		parent = chain.String()
	}
	if _, err := sn.View(t.Context(), "view", parent); err != nil {
		t.Fatal(err)
	}
	for _, chain := range list {
		if !g.has(chain) {
			t.Errorf("layer %s was not pulled", chain)
		}
	}
}

// A pending layer that is removed while it is pulled is noted, so that the guest
// is told.
func TestLayerRemovedWhilePulled(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := digest.FromString("unwanted")
	hold := make(chan struct{})
	g.hold[chain] = hold
	done := make(chan error, 1)
	go func() { done <- getLayer(t.Context(), sn, "key", "", chain) }()
	<-g.holding
	noError(t, sn.Remove(t.Context(), chain.String()))
	noError(t, sn.Cleanup(t.Context()))
	close(hold)
	wantError(t, <-done, errdefs.ErrFailedPrecondition, "pull the image again")
	noError(t, sn.Cleanup(t.Context()))
	if g.has(chain) {
		t.Error("the layer stays in the guest")
	}
	if left := append(entries(t, root, "layers"), entries(t, root, "snapshots")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A root that was deleted under containerd is made anew from containerd's own
// records, whoever asks first.
func TestLostRoot(t *testing.T) {
	t.Parallel()
	list := chains("lost", 3)
	top := list[2].String()
	for name, ask := range map[string]func(sn *snapshotter.Snapshotter) error{
		"listing": func(sn *snapshotter.Snapshotter) error { _, err := sn.Stat(t.Context(), top); return err },
		"unpacker": func(sn *snapshotter.Snapshotter) error {
			_, err := sn.Stat(leases.WithLease(t.Context(), "pull"), top)
			return err
		},
		"container": func(sn *snapshotter.Snapshotter) error { _, err := sn.Prepare(t.Context(), "c", top); return err },
		"view":      func(sn *snapshotter.Snapshotter) error { _, err := sn.View(t.Context(), "v", top); return err },
		"next layer": func(sn *snapshotter.Snapshotter) error {
			return getLayer(t.Context(), sn, "key", list[1].String(), list[2])
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, g := filepath.Join(t.TempDir(), "root"), newGuest(t)
			g.stack = list
			before, err := snapshotter.Open(root, g, g, snapshotter.Options{})
			if err != nil {
				t.Fatal(err)
			}
			pull(t, before, list)
			noError(t, before.Close())
			noError(t, os.RemoveAll(root))
			sn := open(t, root, g)
			noError(t, ask(sn))
			parent := ""
			for _, chain := range list {
				parent = lookup(t, sn, chain, parent)
			}
			pulls := g.count(list[2])
			if want := map[bool]int{true: 1, false: 2}[name == "listing"]; pulls != want {
				t.Errorf("the layer was asked for %d times, want %d", pulls, want)
			}
			if _, err := sn.Prepare(t.Context(), "container", top); err != nil {
				t.Error(err)
			}
			noError(t, sn.Cleanup(t.Context()))
			if diff := cmp.Diff(true, g.has(list[0]) && g.has(list[2])); diff != "" {
				t.Error("cleanup took layers in use")
			}
		})
	}
	// What containerd has no record of stays lost, and says so.
	sn := open(t, t.TempDir(), newGuest(t))
	_, err := sn.Stat(t.Context(), top)
	wantError(t, err, errdefs.ErrNotFound, "cannot be made anew")
	_, err = sn.Stat(t.Context(), "default/1/container")
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want NotFound", err)
	}
}
