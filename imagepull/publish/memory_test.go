// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

// TestMemory encrypts a layer of 300 MB, and may not hold more than a few.
func TestMemory(t *testing.T) { //nolint:paralleltest // the heap is everybody's
	if testing.Short() {
		t.Skip("writes 900 MB of temporary files")
	}
	const (
		layerSize = 300 << 20
		limit     = 8 << 20
	)
	dir := t.TempDir()
	source := target(t, "oci:"+dir)
	big := generateLayer(t, dir, layerSize)
	manifest := pushJSON(t, source, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(t, source, ocispec.MediaTypeImageConfig, []byte("{}")), Layers: []ocispec.Descriptor{big},
	})
	tag(t, source, manifest, "plain")

	var base, peak, steps uint64
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	base = heap()
	_, err := encrypt(t.Context(), t, "oci:"+dir+":plain", "oci:"+t.TempDir()+":enc", publish.Options{
		Recipients: []publish.Recipient{kbsRecipient(kid)},
		Progress: func(publish.Event) { // one layer: never from two goroutines
			if steps++; steps%64 == 0 {
				peak = max(peak, heap())
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("heap grew by %d bytes over %d at most, in %d steps", int64(peak)-int64(base), base, steps)
	if peak > base+limit {
		t.Errorf("heap grew from %d to %d bytes, limit %d", base, peak, limit)
	}
}

// generateLayer writes bytes that do not compress into a layout.
func generateLayer(t *testing.T, dir string, size int64) ocispec.Descriptor {
	t.Helper()
	file, err := os.CreateTemp(dir, "layer")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	digester := digest.Canonical.Digester()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := io.Copy(io.MultiWriter(file, digester.Hash()), io.LimitReader(random, size)); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file.Name(), filepath.Join(folder, digester.Digest().Encoded())); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digester.Digest(), Size: size}
}
