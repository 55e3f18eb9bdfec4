// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
)

func verifyFirst(o *imagepull.Options) { o.VerifyBeforeUnpack = true }

func TestVerifyBeforeUnpack(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	e := newEnv(t, newKeyring(key), verifyFirst)
	var layers []imagetest.Layer
	for _, compression := range []imagetest.Compression{imagetest.None, imagetest.Gzip, imagetest.Zstd} {
		layers = append(layers, imagetest.Layer{Random: 150_000, Compression: compression}, imagetest.Layer{Random: 150_000, Compression: compression, Key: &key})
	}
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: layers})
	if err := e.top(p); err != nil {
		t.Fatal(err)
	}
	e.has(p)
}

// TestForgedBlobMeetsNoParser offers a forged blob that no unpacker can hold:
// what is refused for its MAC has not been unpacked, else the disk is full.
func TestForgedBlobMeetsNoParser(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	zeros := map[string]string{"zeros": strings.Repeat("0", 6<<20)}
	for _, c := range []struct {
		name  string
		edit  func(*imagepull.Options)
		class func(error) bool
		stage imagepull.Stage
	}{
		{"as it comes", nil, errdefs.IsResourceExhausted, imagepull.StageApply},
		{"verified before", verifyFirst, errdefs.IsDataLoss, imagepull.StageVerify},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnvAt(t, newTmpfs(t, "4m"), newKeyring(key), c.edit)
			p := e.registry.Push(t, "a/zeros:v1", imagetest.Image{Layers: []imagetest.Layer{{Key: &key, Compression: imagetest.Gzip, Files: zeros}}})
			e.registry.Replace("a/zeros", p.Layers[0].Digest, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
			checkFailure(t, e.top(p), c.class, c.stage)
			e.clean(p, 0)
		})
	}
}

func TestSpoolOnAFullDisk(t *testing.T) {
	t.Parallel()
	key := imagetest.NewKey(t, kid)
	root := newTmpfs(t, "4m")
	e := newEnvAt(t, root, newKeyring(key), verifyFirst)
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 3 << 20, Key: &key, Compression: imagetest.Gzip}}})
	checkFailure(t, e.top(p), errdefs.IsResourceExhausted, imagepull.StageApply, "out of space in "+root)
	e.clean(p, 0)
	var free unix.Statfs_t
	if err := unix.Statfs(root, &free); err != nil {
		t.Fatal(err)
	}
	if used := (free.Blocks - free.Bfree) * uint64(free.Bsize); used > 1<<20 {
		t.Errorf("%d bytes are still used", used)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	if err := e.top(p); err != nil {
		t.Errorf("after there was room: %v", err)
	}
	e.has(p)
}
