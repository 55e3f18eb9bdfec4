// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-cc/coffer/imagepull/decompress"
)

// bomb is n members or frames that make 16 MiB of zeros each.
func bomb(one []byte, n int) io.Reader { return bytes.NewReader(bytes.Repeat(one, n)) }

func TestRatio(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	zeros := make([]byte, size)
	gz, zs := gzipped(t, zeros), zstdCompressed(t, zeros, zstd.WithEncoderLevel(zstd.SpeedFastest))
	padded := join(zs, skippable(make([]byte, 100<<10))) // 16 MiB of which 100 KiB are there
	for name, tc := range map[string]struct {
		mediaType string
		one       []byte
		n         int
		ratio     int64
		refused   bool
	}{
		"gzip reaches no default":      {gzipType, gz, 17, 0, false},
		"gzip":                         {gzipType, gz, 17, 500, true},
		"zstd":                         {zstdType, zs, 24, 0, true},
		"zstd below the floor":         {zstdType, zs, 16, 1, false},
		"zstd that may":                {zstdType, zs, 24, 1 << 40, false},
		"zstd with skipped ballast":    {zstdType, padded, 24, 200, false},
		"zstd with too little of it":   {zstdType, padded, 24, 100, true},
		"a tar that is not compressed": {tarType, zeros, 17, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var pool decompress.Pool
			d, err := pool.NewReader(tc.mediaType, bomb(tc.one, tc.n), decompress.Options{MaxRatio: tc.ratio})
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, d)
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if !tc.refused {
				if err != nil || n != int64(size*tc.n) {
					t.Errorf("read %d bytes, %v", n, err)
				}
				return
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "image.limits.max_compression_ratio") {
				t.Errorf("error %v", err)
			}
			if n > 257<<20 {
				t.Errorf("%d bytes were given before it was refused", n)
			}
		})
	}
}
