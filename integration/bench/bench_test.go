// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// smallImage has everything that the real one has, in a few hundred files.
func smallImage() []shape {
	layers := realImage()
	for i := range layers {
		layers[i].Files /= 50
		layers[i].Bytes /= 50
		layers[i].Hide /= 5
	}
	layers[5].Below = &layers[2]
	return layers
}

func TestTheSameSeedGivesTheSameLayer(t *testing.T) {
	t.Parallel()
	var once, again, other bytes.Buffer
	s := smallImage()[5]
	for _, w := range []struct {
		to   *bytes.Buffer
		seed uint64
	}{{&once, 1}, {&again, 1}, {&other, 2}} {
		if err := newGenerator().write(w.to, s, w.seed); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(once.Bytes(), again.Bytes()) {
		t.Error("the same seed gave two layers")
	}
	if bytes.Equal(once.Bytes(), other.Bytes()) {
		t.Error("two seeds gave one layer")
	}
}

// The generated image is like real ones: see docs/performance.md.
func TestTheImageIsLikeARealOne(t *testing.T) {
	t.Parallel()
	g := newGenerator()
	kinds := map[string]int{}
	var content, compressed int
	for i, s := range smallImage() {
		var layer, packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, 6)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(g.write(io.MultiWriter(&layer, w), s, uint64(i)), w.Close()); err != nil {
			t.Fatal(err)
		}
		content, compressed = content+layer.Len(), compressed+packed.Len()
		for r := tar.NewReader(&layer); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			switch base := path.Base(h.Name); {
			case base == ".wh..wh..opq":
				kinds["opaque"]++
			case strings.HasPrefix(base, ".wh."):
				kinds["whiteout"]++
			default:
				kinds[string(h.Typeflag)]++
			}
		}
	}
	if ratio := float64(content) / float64(compressed); ratio < 2.3 || ratio > 3 {
		t.Errorf("gzip makes it smaller by %.2f, want about 2.6", ratio)
	}
	for _, kind := range []string{"0", "1", "2", "5", "whiteout", "opaque"} { // 0 regular, 1 hard link, 2 symlink, 5 directory
		if kinds[kind] == 0 {
			t.Errorf("no entries of kind %s in %v", kind, kinds)
		}
	}
	whole := realImage()
	files, size := 0, 0
	for _, s := range whole {
		files, size = files+s.Files, size+s.Bytes
	}
	if files != 30000 || size != 406e6 {
		t.Errorf("%d files, %d bytes", files, size)
	}
}

// Whoever pulls the generated images, in any form, gets the same files.
func TestContendersUnpackTheSameFiles(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
			t.Fatal("unpacking layers needs root, and REQUIRE names it")
		}
		t.Skip("unpacking layers needs root")
	}
	c, release, err := openCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = release() })
	if _, _, err := openCache(filepath.Dir(c.dir)); err == nil {
		t.Error("two runs have one cache")
	}
	for _, img := range []image{
		{Name: "gzip", Layers: smallImage(), Plain: true},
		{Name: "zstd", Layers: smallImage(), Plain: true, Form: form{Zstd: true}},
	} {
		if _, err := generate(t.Context(), job{Cache: c.dir, Generate: &img}); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(registryHandler(c))
	t.Cleanup(server.Close)
	var want []string
	for _, pull := range []struct{ kind, image string }{
		{"coffer", "gzip"},
		{"coffer", "gzip-plain"},
		{"coffer", "zstd"},
		{"coffer", "zstd-plain"},
		{"sequential", "gzip"},
		{"parallel", "zstd"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := jobs()[pull.kind](ctx, job{
			Cache: c.dir, Registry: strings.TrimPrefix(server.URL, "http://"), Dir: t.TempDir(), Images: []string{pull.image}, Tree: true,
		})
		cancel()
		if err != nil {
			t.Fatalf("%v: %v", pull, err)
		}
		if want == nil {
			want = s.Trees
		}
		if diff := cmp.Diff(want, s.Trees); diff != "" || len(s.Trees) != 6 {
			t.Errorf("%v: %s", pull, diff)
		}
		if s.Wall <= 0 || s.CPU <= 0 || s.RSS <= 0 || s.Mallocs == 0 {
			t.Errorf("%v measured nothing: %+v", pull, s)
		}
	}
}
