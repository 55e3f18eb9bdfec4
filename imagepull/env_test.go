// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keyring unwraps with the keys it has, and counts.
type keyring struct {
	mu    sync.Mutex
	keks  map[string][]byte
	calls int
	given [][]byte // the private options it handed out, to be cleared
	// hook, if set, is asked first.
	hook func(ctx context.Context, kid string) error
}

func newKeyring(keys ...imagetest.Key) *keyring {
	k := &keyring{keks: make(map[string][]byte)}
	for _, key := range keys {
		k.keks[key.KID] = key.KEK
	}
	return k
}

func (k *keyring) UnwrapKey(ctx context.Context, packet []byte) ([]byte, error) {
	p, err := keywrap.ParsePacket(packet)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.calls++
	kek, ok := k.keks[p.KID()]
	hook := k.hook
	k.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, p.KID()); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, errdefs.ErrNotFound.WithMessage("kbs: no key " + p.KID())
	}
	private, err := keywrap.Unwrap(kek, p)
	if err != nil {
		return nil, errdefs.ErrDataLoss.WithMessage("key " + p.KID() + " does not unwrap this layer")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.given = append(k.given, private)
	return private, nil
}

func (k *keyring) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

// env is a puller with a registry, a store and keys, all real.
type env struct {
	t        *testing.T
	registry *imagetest.Registry
	keys     *keyring
	root     string
	kept     store.Options // for restart
	store    *store.Store
	puller   *imagepull.Puller
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("unpacking layers needs root, and REQUIRE names it")
	}
	t.Skip("unpacking layers needs root")
}

func newEnv(t *testing.T, keys *keyring, edit func(*imagepull.Options)) *env {
	t.Helper()
	return newEnvAt(t, newTmpfs(t, "256m"), keys, edit)
}

// newTmpfs mounts a file system of its own: overlayfs can write to it, and
// ext4 is slow where files have just been deleted.
func newTmpfs(t testing.TB, size string) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("something is left mounted in %s: %v", root, err)
		}
	})
	return root
}

// shortStall is long enough for a registry that is not stalled, mostly.
const shortStall = 200 * time.Millisecond

func newEnvAt(t *testing.T, root string, keys *keyring, edit func(*imagepull.Options)) *env {
	t.Helper()
	return newEnvStall(t, root, shortStall, keys, edit)
}

func newEnvStall(t *testing.T, root string, stall time.Duration, keys *keyring, edit func(*imagepull.Options)) *env {
	t.Helper()
	return newEnvStore(t, root, stall, store.Options{}, keys, edit)
}

func newEnvStore(t *testing.T, root string, stall time.Duration, kept store.Options, keys *keyring, edit func(*imagepull.Options)) *env {
	t.Helper()
	e := &env{t: t, registry: imagetest.New(t), keys: keys, root: root}
	client, err := registry.NewClient(registry.Options{Insecure: []string{e.registry.Host()}, StallTimeout: stall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	e.store, err = store.Open(filepath.Join(root, "store"), kept)
	if err != nil {
		t.Fatal(err)
	}
	opts := imagepull.Options{Tries: 4, RetryDelay: time.Millisecond, Scratch: filepath.Join(root, "scratch")}
	if edit != nil {
		edit(&opts)
	}
	var unwrapper imagepull.KeyUnwrapper
	if keys != nil {
		unwrapper = keys
	}
	e.puller = imagepull.NewPuller(client, unwrapper, e.store, opts)
	t.Cleanup(func() {
		e.puller.Close()
		if err := e.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// pull pulls one layer.
func (e *env) pull(ctx context.Context, p imagetest.Pushed, chainID digest.Digest) (string, error) {
	path, _, _, err := e.puller.PullLayer(ctx, p.Reference, p.Manifest.Digest, chainID)
	return path, err
}

// top pulls the uppermost layer, and so all.
func (e *env) top(p imagetest.Pushed) error {
	_, err := e.pull(e.t.Context(), p, p.Chain())
	return err
}

// has fails unless all layers are there with exactly the files of their tars.
func (e *env) has(p imagetest.Pushed) {
	e.t.Helper()
	for i, l := range p.Layers {
		layer, ok := e.store.Layer(l.ChainID)
		if !ok {
			e.t.Errorf("layer %d is not in the store", i)
			continue
		}
		e.hasFiles(i, l, layer.Path)
	}
}

// hasFiles fails unless path has exactly the files of a layer's tar.
func (e *env) hasFiles(i int, l imagetest.Built, path string) {
	e.t.Helper()
	want := tarFiles(e.t, l.Tar)
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(path, name))
		if err != nil || !bytes.Equal(got, content) {
			e.t.Errorf("layer %d, %s: %d bytes, %v", i, name, len(got), err)
		}
	}
	if got := countFiles(e.t, path); got != len(want) {
		e.t.Errorf("layer %d has %d files, want %d", i, got, len(want))
	}
}

// clean fails if anything is being staged, or a layer of p from index n is there.
func (e *env) clean(p imagetest.Pushed, n int) {
	e.t.Helper()
	left, err := os.ReadDir(filepath.Join(e.root, "store", "staging"))
	left = slices.DeleteFunc(left, func(d os.DirEntry) bool { return strings.HasPrefix(d.Name(), "images-") }) // of a pull that is just ending
	if err != nil || len(left) > 0 {
		e.t.Errorf("staging has %v, %v", left, err)
	}
	for i, l := range p.Layers[n:] {
		if _, ok := e.store.Layer(l.ChainID); ok {
			e.t.Errorf("layer %d is in the store", n+i)
		}
	}
}

func tarFiles(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func countFiles(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func stageOf(err error) imagepull.Stage {
	var e *imagepull.LayerError
	if errors.As(err, &e) {
		return e.Stage
	}
	return ""
}
