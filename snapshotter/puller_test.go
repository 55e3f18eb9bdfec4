// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest stands in for coffer-guest: it keeps real layer folders, and can be
// away, fail, or be held up.
type guest struct {
	root string

	mu      sync.Mutex
	away    bool                            // guarded by mu
	fail    map[digest.Digest]error         // guarded by mu
	bad     map[string]error                // guarded by mu; images that fail
	pulls   map[digest.Digest]int           // guarded by mu
	removed []digest.Digest                 // guarded by mu
	images  map[digest.Digest]string        // guarded by mu; what was asked for
	hold    map[digest.Digest]chan struct{} // guarded by mu; a pull of it waits
	holding chan digest.Digest              // hears of pulls that wait
	remove  chan struct{}                   // not nil: removals wait
	lie     string                          // guarded by mu; the folder it names instead of the true one
	stack   []digest.Digest                 // guarded by mu; the layers of the only image, where FindLayers finds one
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	return &guest{
		root:    t.TempDir(),
		fail:    map[digest.Digest]error{},
		bad:     map[string]error{},
		pulls:   map[digest.Digest]int{},
		images:  map[digest.Digest]string{},
		hold:    map[digest.Digest]chan struct{}{},
		holding: make(chan digest.Digest, 64),
	}
}

func (g *guest) path(chain digest.Digest) string {
	return filepath.Join(g.root, chain.Encoded(), "fs")
}

func (g *guest) PullLayer(ctx context.Context, image string, manifest, chain digest.Digest) (string, int64, int64, error) {
	g.mu.Lock()
	g.pulls[chain]++
	g.images[chain] = image + " " + manifest.String()
	away, fail, hold, lie := g.away, cmp.Or(g.bad[image], g.fail[chain]), g.hold[chain], g.lie
	g.mu.Unlock()
	if hold != nil {
		g.holding <- chain
		select {
		case <-hold:
		case <-ctx.Done():
			return "", 0, 0, ctx.Err()
		}
	}
	if away {
		return "", 0, 0, fmt.Errorf("coffer-guest is not running: %w", errdefs.ErrUnavailable)
	}
	if fail != nil {
		return "", 0, 0, fail
	}
	dir := g.path(chain)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", 0, 0, err
	}
	file := filepath.Join(dir, chain.Encoded()[:8])
	return cmp.Or(lie, dir), 4096, 2, os.WriteFile(file, []byte(chain), 0o600)
}

func (g *guest) RemoveLayer(ctx context.Context, chain digest.Digest) error {
	g.mu.Lock()
	away, wait := g.away, g.remove
	g.mu.Unlock()
	if away {
		return fmt.Errorf("coffer-guest is not running: %w", errdefs.ErrUnavailable)
	}
	if wait != nil {
		g.holding <- chain
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if _, err := os.Stat(g.path(chain)); err != nil {
		return fmt.Errorf("layer %s: %w", chain, errdefs.ErrNotFound)
	}
	g.mu.Lock()
	g.removed = append(g.removed, chain)
	g.mu.Unlock()
	return os.RemoveAll(filepath.Dir(g.path(chain)))
}

func (g *guest) set(change func(g *guest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

func (g *guest) has(chain digest.Digest) bool {
	_, err := os.Stat(g.path(chain))
	return err == nil
}

func (g *guest) count(chain digest.Digest) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pulls[chain]
}

// FindImage makes a guest its own ImageFinder.
func (g *guest) FindImage(_ context.Context, chain digest.Digest) (string, digest.Digest, error) {
	return "registry.example/found", digest.FromString("manifest of " + chain.String()), nil
}

func open(t *testing.T, root string, g *guest) *snapshotter.Snapshotter {
	t.Helper()
	sn, err := snapshotter.Open(root, g, g, snapshotter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, sn.Close()) })
	return sn
}

// chains returns n chain ids, the lowest first.
func chains(name string, n int) []digest.Digest {
	list := make([]digest.Digest, n)
	for i := range list {
		list[i] = digest.FromString(fmt.Sprint(name, i))
	}
	return list
}

func ref(chain digest.Digest) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain.String(), "containerd.io/snapshot/kept": "yes"})
}

// getLayer gets a layer as containerd's unpacker does: Prepare, which always says
// that it is there, and Stat. The other requests do not come by CRI.
func getLayer(ctx context.Context, sn snapshots.Snapshotter, key, parent string, chain digest.Digest, opts ...snapshots.Opt) error {
	if _, err := sn.Prepare(ctx, key, parent, append(opts, ref(chain))...); !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare %s: %w", key, err)
	}
	_, err := sn.Stat(ctx, chain.String())
	return err
}

// pull gets a chain of layers.
func pull(t *testing.T, sn snapshots.Snapshotter, list []digest.Digest) {
	t.Helper()
	parent := ""
	for _, chain := range list {
		noError(t, getLayer(t.Context(), sn, "default/1/extract-"+chain.String(), parent, chain))
		parent = chain.String()
	}
}

func names(t *testing.T, sn snapshots.Snapshotter) []string {
	t.Helper()
	found := []string{}
	noError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found = append(found, info.Kind.String()+" "+info.Name)
		return nil
	}))
	return found
}

func entries(t *testing.T, dirs ...string) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(dirs...))
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, f := range files {
		list = append(list, f.Name())
	}
	return list
}

func wantError(t *testing.T, err, class error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, class) {
		t.Errorf("got error %v, want class %v and text %q", err, class, text)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// FindLayers finds the only image.
func (g *guest) FindLayers(_ context.Context, chain digest.Digest) (found []map[string]string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := slices.Index(g.stack, chain)
	if at < 0 {
		return nil, fmt.Errorf("no manifest has the layer %s: %w", chain, errdefs.ErrNotFound)
	}
	for _, c := range g.stack[:at+1] {
		found = append(found, map[string]string{snapshots.LabelSnapshotRef: c.String()})
	}
	return found, nil
}

// FindBlob knows of no blob.
func (g *guest) FindBlob(_ context.Context, chain digest.Digest) (ocispec.Descriptor, bool, error) {
	return ocispec.Descriptor{}, false, fmt.Errorf("no manifest has the layer %s: %w", chain, errdefs.ErrNotFound)
}
