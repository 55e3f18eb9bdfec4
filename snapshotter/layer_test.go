// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestLayerIsCommitted(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	list := chains("layer", 3)
	pull(t, sn, list)
	if diff := cmp.Diff([]string{"1", "2", "3"}, entries(t, root, "snapshots")); diff != "" {
		t.Error(diff)
	}
	if left := entries(t, root, "layers"); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
	info, err := sn.Stat(t.Context(), list[2].String())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{snapshots.LabelSnapshotRef: list[2].String(), "containerd.io/snapshot/kept": "yes"}
	if diff := cmp.Diff(want, info.Labels); diff != "" || info.Kind != snapshots.KindCommitted || info.Parent != list[1].String() {
		t.Errorf("got %+v, labels differ by %s", info, diff)
	}
	usage, err := sn.Usage(t.Context(), list[2].String())
	if err != nil || usage != (snapshots.Usage{Size: 4096, Inodes: 2}) {
		t.Errorf("got usage %+v, %v", usage, err)
	}
	mounts, err := sn.Prepare(t.Context(), "container", list[2].String())
	if err != nil || len(mounts) != 1 {
		t.Fatalf("got mounts %v, %v", mounts, err)
	}
	lower := ""
	for _, o := range mounts[0].Options {
		if value, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = value
		}
	}
	for i, dir := range strings.Split(lower, ":") {
		chain := list[2-i]
		if b, err := os.ReadFile(filepath.Join(dir, chain.Encoded()[:8])); err != nil || string(b) != chain.String() {
			t.Errorf("lower %d: got %q, %v", i, b, err)
		}
	}
}

func TestImageComesFromLabelsOrFinder(t *testing.T) {
	t.Parallel()
	chain, manifest := digest.FromString("chain"), digest.FromString("manifest")
	found := "registry.example/found " + digest.FromString("manifest of "+chain.String()).String()
	for name, tc := range map[string]struct {
		labels map[string]string
		want   string
	}{
		"both labels": {map[string]string{snapshotters.TargetRefLabel: "host:5000/r:t", snapshotters.TargetManifestDigestLabel: manifest.String()}, "host:5000/r:t " + manifest.String()},
		"no labels":   {nil, found},
		"no manifest": {map[string]string{snapshotters.TargetRefLabel: "host:5000/r:t"}, found},
		"bad digest":  {map[string]string{snapshotters.TargetRefLabel: "host:5000/r:t", snapshotters.TargetManifestDigestLabel: "sha256:1"}, found},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t)
			sn := open(t, t.TempDir(), g)
			noError(t, getLayer(t.Context(), sn, "key", "", chain, snapshots.WithLabels(tc.labels)))
			if g.images[chain] != tc.want {
				t.Errorf("got %q, want %q", g.images[chain], tc.want)
			}
		})
	}
}

// TestImageThatIsBad: containerd names an image once. Where that one cannot be had
// any more, the one that was written last is.
func TestImageThatIsBad(t *testing.T) {
	t.Parallel()
	chain := digest.FromString("chain")
	named := func(manifest digest.Digest) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshotters.TargetRefLabel: "host/bad:t", snapshotters.TargetManifestDigestLabel: manifest.String()})
	}
	bad, worse := fmt.Errorf("forged: %w", errdefs.ErrDataLoss), fmt.Errorf("registry away: %w", errdefs.ErrUnavailable)
	g := newGuest(t)
	g.bad["host/bad:t"] = bad
	sn := open(t, t.TempDir(), g)

	// Nothing else has the layer.
	manifest := digest.FromString("manifest of " + chain.String())
	wantError(t, getLayer(t.Context(), sn, "key", "", chain, named(manifest)), errdefs.ErrDataLoss, bad.Error())
	if n := g.count(chain); n != 1 {
		t.Errorf("pulled %d times", n)
	}
	noError(t, sn.Remove(t.Context(), chain.String()))

	g.set(func(g *guest) { g.bad["registry.example/found"] = worse })
	err := getLayer(t.Context(), sn, "key", "", chain, named(digest.FromString("old")))
	wantError(t, err, errdefs.ErrUnavailable, worse.Error())
	wantError(t, err, errdefs.ErrUnavailable, bad.Error())

	// containerd asks no more than this, as it has the layer.
	g.set(func(g *guest) { delete(g.bad, "registry.example/found") })
	_, err = sn.Prepare(t.Context(), "container", chain.String())
	noError(t, err)
}

func TestFailedPull(t *testing.T) {
	t.Parallel()
	for _, class := range []error{
		errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss,
		errdefs.ErrUnavailable, errdefs.ErrNotFound, errdefs.ErrResourceExhausted,
	} {
		t.Run(class.Error(), func(t *testing.T) {
			t.Parallel()
			root, g := t.TempDir(), newGuest(t)
			sn := open(t, root, g)
			list := chains("failing", 2)
			pull(t, sn, list[:1])
			denied := fmt.Errorf("kbs http://kbs: rule r of policy p: %w", class)
			g.set(func(g *guest) { g.fail[list[1]] = denied })
			err := getLayer(t.Context(), sn, "key", list[0].String(), list[1])
			want := class
			if errors.Is(class, errdefs.ErrNotFound) {
				want = errdefs.ErrFailedPrecondition // not the unpacker's own NotFound
			}
			wantError(t, err, want, denied.Error())
			if errdefs.IsNotFound(err) != errors.Is(want, errdefs.ErrNotFound) {
				t.Errorf("the unpacker takes %v for a lost snapshot", err)
			}
			// The container of a layer that is not there fails for the same reason.
			_, err = sn.Prepare(t.Context(), "container", list[1].String())
			wantError(t, err, class, denied.Error())
			if diff := cmp.Diff([]string{"Committed " + list[0].String(), "Committed " + list[1].String()}, names(t, sn)); diff != "" {
				t.Error(diff)
			}
			g.set(func(g *guest) { delete(g.fail, list[1]) })
			pull(t, sn, list)
			noError(t, sn.Cleanup(t.Context()))
			if !g.has(list[0]) || !g.has(list[1]) {
				t.Error("cleanup removed a layer in use")
			}
		})
	}
}

// A guest elsewhere, or a broken one, names folders that are none here.
func TestFolderOfAnotherMachine(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		path  string
		class error
		text  string
	}{
		"absent":     {"/nowhere/at/all", errdefs.ErrFailedPrecondition, "run coffer-guest on this machine"},
		"not folder": {"/proc/self/status", errdefs.ErrFailedPrecondition, "is not a folder"},
		"relative":   {"layers/x", errdefs.ErrInternal, "not an absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, g := t.TempDir(), newGuest(t)
			sn := open(t, root, g)
			chain := chains("elsewhere", 1)[0]
			g.set(func(g *guest) { g.lie = tc.path })
			wantError(t, getLayer(t.Context(), sn, "key", "", chain), tc.class, tc.text)
			// The guest has the layer, so it must be told that nobody wants it.
			noError(t, sn.Remove(t.Context(), chain.String()))
			noError(t, sn.Cleanup(t.Context()))
			if left := append(names(t, sn), entries(t, root, "snapshots")...); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
			if g.has(chain) {
				t.Error("the layer stays in the guest")
			}
			g.set(func(g *guest) { g.lie = "" })
			pull(t, sn, []digest.Digest{chain})
		})
	}
}

func TestPullHonoursCancellation(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	chain := digest.FromString("slow")
	g.hold[chain] = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- getLayer(ctx, sn, "key", "", chain) }()
	<-g.holding
	// Nothing is locked while the guest works.
	if _, err := sn.Prepare(t.Context(), "other", ""); err != nil {
		t.Error(err)
	}
	noError(t, sn.Cleanup(t.Context()))
	cancel()
	wantError(t, <-done, context.Canceled, "")
	if diff := cmp.Diff([]string{"Active other", "Committed " + chain.String()}, names(t, sn)); diff != "" {
		t.Error(diff)
	}
}

func TestConcurrentPrepares(t *testing.T) {
	t.Parallel()
	root, g := t.TempDir(), newGuest(t)
	sn := open(t, root, g)
	list := chains("shared", 4)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			parent := ""
			for _, chain := range list {
				key := fmt.Sprintf("ns%d/1/extract %s", i, chain)
				noError(t, getLayer(t.Context(), sn, key, parent, chain))
				parent = chain.String()
			}
		})
	}
	wg.Wait()
	if got := names(t, sn); len(got) != len(list) {
		t.Errorf("got snapshots %v", got)
	}
	if got := entries(t, root, "snapshots"); len(got) != len(list) {
		t.Errorf("got folders %v", got)
	}
	if left := entries(t, root, "layers"); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
}

func TestWipedGuest(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	list := chains("wiped", 2)
	pull(t, sn, list)
	if _, err := sn.Prepare(t.Context(), "before", list[1].String()); err != nil {
		t.Fatal(err)
	}
	noError(t, os.RemoveAll(filepath.Dir(g.path(list[0]))))
	g.set(func(g *guest) { g.away = true })
	_, err := sn.Mounts(t.Context(), "before")
	wantError(t, err, errdefs.ErrUnavailable, "remove the image and its containers")
	_, err = sn.Prepare(t.Context(), "after", list[1].String())
	wantError(t, err, errdefs.ErrUnavailable, g.path(list[0])+" is not in the guest's layer store")
	_, err = sn.View(t.Context(), "view", list[1].String())
	wantError(t, err, errdefs.ErrUnavailable, "cannot be pulled again")
	if got := names(t, sn); len(got) != len(list)+1 {
		t.Errorf("got snapshots %v", got)
	}
	// Whoever comes first once the guest is back heals, to another folder too.
	g.set(func(g *guest) { g.away, g.root = false, t.TempDir() })
	if _, err = sn.Prepare(t.Context(), "after", list[1].String()); err != nil {
		t.Error(err)
	}
	if _, err = sn.Mounts(t.Context(), "before"); err != nil {
		t.Error(err)
	}
	if got := g.count(list[1]); got != 1 {
		t.Errorf("a layer that was there was pulled %d times", got)
	}
}

func TestLayerOnLocalParent(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	list := chains("mixed", 3)
	// containerd unpacked the lowest layer itself in one namespace.
	local := "one/2/" + list[0].String()
	if _, err := sn.Prepare(t.Context(), "one/1/key", ""); err != nil {
		t.Fatal(err)
	}
	noError(t, sn.Commit(t.Context(), local, "one/1/key"))
	parent := local
	for _, chain := range list[1:] {
		_, err := sn.Prepare(t.Context(), "one/3/"+chain.String(), parent, ref(chain))
		wantError(t, err, errdefs.ErrAlreadyExists, "")
		parent = lookup(t, sn, chain, parent)
	}
	pull(t, sn, list)
	parent = ""
	for _, chain := range list {
		parent = lookup(t, sn, chain, parent)
	}
}

// A layer that replaces the root directory hides all that is below.
func TestOpaqueRoot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	list := chains("opaque", 3)
	pull(t, sn, list)
	if err := unix.Setxattr(g.path(list[1]), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	mounts, err := sn.Prepare(t.Context(), "key", list[2].String())
	noError(t, err)
	options := strings.Join(mounts[0].Options, ",")
	if _, lower, _ := strings.Cut(options, "lowerdir="); strings.Count(lower, ":") != 1 {
		t.Errorf("not two layers: %s", options)
	}
	if err := unix.Setxattr(g.path(list[2]), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	mounts, err = sn.View(t.Context(), "view", list[2].String())
	noError(t, err)
	if mounts[0].Type != "bind" {
		t.Errorf("a single layer is mounted as %v", mounts)
	}
}

// lookup finds a layer as containerd does after AlreadyExists.
func lookup(t *testing.T, sn snapshots.Snapshotter, chain digest.Digest, parent string) string {
	t.Helper()
	found := ""
	filter := fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, chain, parent)
	noError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found = info.Name
		return nil
	}, filter))
	if found == "" {
		t.Errorf("no snapshot for %s on %q", chain, parent)
	}
	return found
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sn := open(t, t.TempDir(), g)
	list := chains("bad", 2)
	for _, label := range []string{"latest", "sha256:12", "sha512:" + strings.Repeat("0", 128)} {
		_, err := sn.Prepare(t.Context(), "key", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: label}))
		wantError(t, err, errdefs.ErrInvalidArgument, "not the chain id")
	}
	_, err := sn.Prepare(t.Context(), "key", list[0].String(), ref(list[1]))
	wantError(t, err, errdefs.ErrNotFound, "pull it again")
	wantError(t, err, errdefs.ErrNotFound, "cannot be made anew")
	if n := g.count(list[1]); n != 0 {
		t.Errorf("pulled %d times on a missing parent", n)
	}
	pull(t, sn, list)
	_, err = sn.Prepare(t.Context(), "key", "", ref(list[1]))
	wantError(t, err, errdefs.ErrFailedPrecondition, "not the layer on parent")
}

func TestUpdateKeepsRef(t *testing.T) {
	t.Parallel()
	sn := open(t, t.TempDir(), newGuest(t))
	chain := chains("update", 1)[0]
	pull(t, sn, []digest.Digest{chain})
	info, err := sn.Update(t.Context(), snapshots.Info{Name: chain.String(), Labels: map[string]string{"new": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"new": "1", snapshots.LabelSnapshotRef: chain.String()}
	if diff := cmp.Diff(want, info.Labels); diff != "" {
		t.Error(diff)
	}
	lookup(t, sn, chain, "")
}
