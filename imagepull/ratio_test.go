// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

// TestCompressionBomb pulls layers that are all zeros behind the end of an
// empty archive, so that no other limit and no disk could stop them.
func TestCompressionBomb(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	tar := make([]byte, 272<<20)
	const limit = "image.limits.max_compression_ratio"
	for name, tc := range map[string]struct {
		layer imagetest.Layer
		ratio int64
	}{
		"zstd":            {imagetest.Layer{Compression: imagetest.Zstd}, 0},
		"zstd, encrypted": {imagetest.Layer{Compression: imagetest.Zstd, Key: &key}, 0},
		"gzip, encrypted": {imagetest.Layer{Compression: imagetest.Gzip, Key: &key}, 800},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(o *imagepull.Options) { o.MaxCompressionRatio = tc.ratio }
			e := newEnv(t, newKeyring(key), edit)
			tc.layer.Tar = tar
			p := e.registry.Push(t, "a/bomb:v1", imagetest.Image{Layers: []imagetest.Layer{tc.layer}})
			checkFailure(t, e.top(p), errdefs.IsInvalidArgument, imagepull.StageDecompress, limit)
			e.clean(p, 0)
			// A bomb that is forged as well is first of all forged.
			e.registry.Replace("a/bomb", p.Layers[0].Digest, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
			checkFailure(t, e.top(p), errdefs.IsDataLoss, imagepull.StageVerify)
		})
	}
}
