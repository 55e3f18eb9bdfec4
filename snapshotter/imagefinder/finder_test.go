// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagefinder_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	configRef = "containerd.io/gc.ref.content.config"
	source    = labels.LabelDistributionSource + "."
)

// store is containerd's real metadata and content store.
type store struct {
	db     *metadata.DB
	images images.Store
	reads  *int
}

func newStore(t testing.TB) store {
	t.Helper()
	blobs, err := local.NewStore(filepath.Join(t.TempDir(), "content"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	db := metadata.NewDB(file, blobs, nil)
	return store{db: db, images: metadata.NewImageStore(db), reads: new(int)}
}

// counted counts reads of blobs.
type counted struct {
	content.Store
	reads *int
}

func (c counted) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	*c.reads++
	return c.Store.ReaderAt(ctx, desc)
}

func (s store) finder(registries ...string) *imagefinder.Finder {
	return imagefinder.New(counted{s.db.ContentStore(), s.reads}, s.images, imagefinder.Options{Registries: registries})
}

func (s store) write(ctx context.Context, t testing.TB, blob []byte, l map[string]string) digest.Digest {
	t.Helper()
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, s.db.ContentStore(), desc.Digest.String(), bytes.NewReader(blob), desc, content.WithLabels(l)); err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

// image writes a config with these layers and a manifest of it, as a pull does.
func (s store) image(ctx context.Context, t testing.TB, name string, l map[string]string, layers ...string) digest.Digest {
	t.Helper()
	config := s.write(ctx, t, config(t, name, layers...), nil)
	all := map[string]string{configRef: config.String()}
	for k, v := range l {
		all[k] = v
	}
	return s.write(ctx, t, []byte("manifest "+name), all)
}

func config(t testing.TB, author string, layers ...string) []byte {
	t.Helper()
	c := ocispec.Image{Author: author, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(l))
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func chain(layers ...string) digest.Digest {
	var ids []digest.Digest
	for _, l := range layers {
		ids = append(ids, digest.FromString(l))
	}
	return identity.ChainID(ids)
}

func ns(t *testing.T, name string) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), name)
}

func TestFindImage(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	hub := s.image(ctx, t, "hub", map[string]string{source + "docker.io": "library/app"}, "a", "b")
	port := s.image(ctx, t, "port", map[string]string{source + "127.0.0.1": "team/app"}, "c")
	many := s.image(ctx, t, "many", map[string]string{source + "r.example": "x/app,y/app"}, "d")
	for _, tc := range []struct {
		layers   []string
		image    string
		manifest digest.Digest
	}{
		{[]string{"a"}, "docker.io/library/app@", hub},
		{[]string{"a", "b"}, "docker.io/library/app@", hub},
		{[]string{"c"}, "127.0.0.1:5055/team/app@", port},
		{[]string{"d"}, "r.example/x/app@", many},
	} {
		image, manifest, err := s.finder("127.0.0.1:5055").FindImage(ctx, chain(tc.layers...))
		if err != nil || image != tc.image+tc.manifest.String() || manifest != tc.manifest {
			t.Errorf("%v: got %s, %s, %v", tc.layers, image, manifest, err)
		}
	}
}

func TestPortFromImageRecord(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	direct := s.image(ctx, t, "direct", map[string]string{source + "127.0.0.1": "team/app"}, "a")
	inIndex := s.image(ctx, t, "indexed", map[string]string{source + "::1": "team/other"}, "b")
	index := s.write(ctx, t, []byte("index"), map[string]string{"containerd.io/gc.ref.content.m.0": inIndex.String()})
	for name, target := range map[string]digest.Digest{
		"sha256:123":                                direct,
		"127.0.0.1:1/unrelated:1":                   direct,
		"127.0.0.1:5055/team/app:1":                 direct,
		"[::1]:5056/team/other:2@" + index.String(): index,
	} {
		if _, err := s.images.Create(ctx, images.Image{Name: name, Target: ocispec.Descriptor{Digest: target, MediaType: "m", Size: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	for layer, want := range map[string]string{"a": "127.0.0.1:5055/team/app@" + direct.String(), "b": "[::1]:5056/team/other@" + inIndex.String()} {
		image, _, err := s.finder().FindImage(ctx, chain(layer))
		if err != nil || image != want {
			t.Errorf("got %s, %v, want %s", image, err, want)
		}
	}
}

func TestLastWrittenManifestWins(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	// A plain image and its encrypted twin have one config.
	plain := s.image(ctx, t, "twin", map[string]string{source + "r.example": "plain"}, "a")
	c := digest.FromBytes(config(t, "twin", "a"))
	encrypted := s.write(ctx, t, []byte("encrypted"), map[string]string{configRef: c.String(), source + "r.example": "encrypted"})
	image, _, err := s.finder().FindImage(ctx, chain("a"))
	if err != nil || image != "r.example/encrypted@"+encrypted.String() {
		t.Errorf("got %s, %v", image, err)
	}
	info := content.Info{Digest: plain, Labels: map[string]string{source + "r.example": "plain"}}
	if _, err := s.db.ContentStore().Update(ctx, info, "labels."+source+"r.example"); err != nil {
		t.Fatal(err)
	}
	image, _, err = s.finder().FindImage(ctx, chain("a"))
	if err != nil || image != "r.example/plain@"+plain.String() {
		t.Errorf("got %s, %v", image, err)
	}
}

func TestFindImageErrors(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	s.image(ctx, t, "imported", nil, "imported")
	s.image(ns(t, "other"), t, "other", map[string]string{source + "r.example": "app"}, "other namespace")
	s.write(ctx, t, []byte("no config yet"), map[string]string{configRef: digest.FromString("missing").String()})
	s.write(ctx, t, []byte("bad config ref"), map[string]string{configRef: "sha256:1"})
	for _, blob := range [][]byte{[]byte("not json"), []byte("{}"), []byte(`{"rootfs":{"diff_ids":["sha256:1"]}}`), bytes.Repeat([]byte(" "), 8<<20+1)} {
		c := s.write(ctx, t, blob, nil)
		s.write(ctx, t, append([]byte("manifest of "), c...), map[string]string{configRef: c.String(), source + "r.example": "app"})
	}
	for _, tc := range []struct {
		ctx   context.Context //nolint:containedctx // a table
		layer string
		class error
		text  string
	}{
		{ctx, "imported", errdefs.ErrFailedPrecondition, "push it to a registry and pull it"},
		{ctx, "other namespace", errdefs.ErrNotFound, "no manifest in containerd namespace default has the layer"},
		{t.Context(), "imported", errdefs.ErrFailedPrecondition, "namespace is required"},
	} {
		_, _, err := s.finder().FindImage(tc.ctx, chain(tc.layer))
		if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v", tc.layer, err)
		}
	}
}

func TestConfigsAreReadOnce(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), ns(t, "default")
	var layers []string
	for i := range 10 {
		layers = append(layers, fmt.Sprint(i))
	}
	s.image(ctx, t, "app", map[string]string{source + "r.example": "app"}, layers...)
	f := s.finder()
	for i := range layers {
		if _, _, err := f.FindImage(ctx, chain(layers[:i+1]...)); err != nil {
			t.Error(err)
		}
	}
	if *s.reads != 1 {
		t.Errorf("config was read %d times", *s.reads)
	}
}
