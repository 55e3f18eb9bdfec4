// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-cc/coffer/imagepull/decompress"
)

// TestPool lets layers of all kinds, broken ones among them, use one pool.
func TestPool(t *testing.T) {
	t.Parallel()
	plain := content(200_000)
	gz, zs := gzipped(t, plain), zstdCompressed(t, plain)
	var pool decompress.Pool
	read := func(mediaType string, blob []byte) ([]byte, error) {
		d, err := pool.NewReader(mediaType, bytes.NewReader(blob), decompress.Options{})
		if err != nil {
			return nil, err
		}
		got, err := io.ReadAll(d)
		return got, errors.Join(err, d.Close(), d.Close())
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				for mediaType, blob := range map[string][]byte{tarType: plain, gzipType: gz, zstdType: zs} {
					if got, err := read(mediaType, blob); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: %d bytes, %v", mediaType, len(got), err)
					}
					if mediaType == tarType {
						continue
					}
					if _, err := read(mediaType, blob[:len(blob)/2]); !errdefs.IsDataLoss(err) {
						t.Errorf("%s, half of it: %v", mediaType, err)
					}
				}
				if _, err := read(gzipType, []byte{0x1f, 0x8b, 8, 0xff}); !errdefs.IsDataLoss(err) {
					t.Errorf("half a header: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// TestPoolKeepsDecoders counts bytes, so it runs alone.
func TestPoolKeepsDecoders(t *testing.T) { //nolint:paralleltest // see above
	const window = 8 << 20
	blob := zstdCompressed(t, content(600_000), zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
	var pool decompress.Pool
	openOne := func() io.ReadCloser {
		d, err := pool.NewReader(zstdType, bytes.NewReader(blob), decompress.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	allocated := func(work func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		work()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	first := openOne()
	if err := openOne().Close(); err != nil {
		t.Fatal(err)
	}
	if n := allocated(func() { _ = openOne().Close() }); n > window/2 {
		t.Errorf("a reader beside another took %d bytes", n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if n := allocated(func() { _ = openOne().Close() }); n < window {
		t.Errorf("a reader after all were closed took only %d bytes: the pool has kept a window", n)
	}
}
