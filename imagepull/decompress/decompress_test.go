// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package decompress_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-cc/coffer/imagepull/decompress"
)

const (
	tarType  = "application/vnd.oci.image.layer.v1.tar"
	gzipType = tarType + "+gzip"
	zstdType = tarType + "+zstd"
)

// content is data that compresses somewhat.
func content(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(24)) + 'a'
	}
	return b
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstdCompressed(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// skippable is a frame that zstd decoders pass over.
func skippable(b []byte) []byte {
	head := binary.LittleEndian.AppendUint32(nil, 0x184d2a53)
	return join(binary.LittleEndian.AppendUint32(head, uint32(len(b))), b)
}

func readAll(mediaType string, r io.Reader) (got []byte, err error) {
	d, err := decompress.NewReader(mediaType, r)
	if err != nil {
		return nil, err
	}
	got, err = io.ReadAll(d)
	return got, errors.Join(err, d.Close())
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	plain := content(1000)
	for _, tc := range []struct {
		blob  []byte
		types []string
	}{
		{plain, []string{
			tarType,
			"application/vnd.oci.image.layer.nondistributable.v1.tar",
			"application/vnd.docker.image.rootfs.diff.tar",
			"application/vnd.docker.image.rootfs.foreign.diff.tar",
		}},
		{gzipped(t, plain), []string{
			gzipType,
			"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
			"application/vnd.docker.image.rootfs.diff.tar.gzip",
			"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		}},
		{zstdCompressed(t, plain), []string{
			zstdType,
			"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
			"application/vnd.docker.image.rootfs.diff.tar.zstd",
			"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
		}},
	} {
		for _, mediaType := range tc.types {
			got, err := readAll(mediaType, bytes.NewReader(tc.blob))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s: content differs, error %v", mediaType, err)
			}
			if !decompress.Known(mediaType) {
				t.Errorf("%s is not known", mediaType)
			}
		}
	}
	for _, mediaType := range []string{"", gzipType + "+encrypted", "application/vnd.oci.image.config.v1+json"} {
		if _, err := readAll(mediaType, bytes.NewReader(plain)); !errdefs.IsNotImplemented(err) || decompress.Known(mediaType) {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	plain := content(300_000)
	half := len(plain) / 2
	for name, tc := range map[string]struct {
		mediaType string
		blob      []byte
	}{
		"tar":              {tarType, plain},
		"gzip":             {gzipType, gzipped(t, plain)},
		"gzip members":     {gzipType, join(gzipped(t, plain[:half]), gzipped(t, nil), gzipped(t, plain[half:]))},
		"zstd":             {zstdType, zstdCompressed(t, plain)},
		"zstd long window": {zstdType, zstdCompressed(t, plain, zstd.WithWindowSize(128<<20), zstd.WithSingleSegment(false))},
		"zstd frames":      {zstdType, join(zstdCompressed(t, plain[:half]), skippable([]byte("toc")), zstdCompressed(t, plain[half:]))},
		"zstd skippable":   {zstdType, join(skippable(nil), zstdCompressed(t, plain), skippable([]byte("toc")))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, r := range []io.Reader{
				bytes.NewReader(tc.blob),
				iotest.OneByteReader(bytes.NewReader(tc.blob)),
				iotest.DataErrReader(bytes.NewReader(tc.blob)),
			} {
				got, err := readAll(tc.mediaType, r)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("content differs, error %v", err)
				}
			}
		})
	}
}

func TestMismatch(t *testing.T) {
	t.Parallel()
	plain := content(1000)
	blobs := map[string][]byte{
		tarType:  plain,
		gzipType: gzipped(t, plain),
		zstdType: zstdCompressed(t, plain),
	}
	for mediaType := range blobs {
		for actual, blob := range blobs {
			if mediaType == actual {
				continue
			}
			if _, err := readAll(mediaType, bytes.NewReader(blob)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s that holds %s: %v", mediaType, actual, err)
			}
		}
	}
	for _, mediaType := range []string{gzipType, zstdType} {
		if _, err := readAll(mediaType, bytes.NewReader(nil)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s that is empty: %v", mediaType, err)
		}
	}
}

func TestDamage(t *testing.T) {
	t.Parallel()
	plain := content(50_000)
	gz, zs := gzipped(t, plain), zstdCompressed(t, plain)
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i] ^= 0x10
		return b
	}
	for name, tc := range map[string]struct {
		mediaType string
		blob      []byte
	}{
		"gzip header cut":        {gzipType, gz[:5]},
		"gzip cut":               {gzipType, gz[:len(gz)/2]},
		"gzip trailer cut":       {gzipType, gz[:len(gz)-1]},
		"gzip flipped":           {gzipType, flip(gz, len(gz)/2)},
		"gzip checksum":          {gzipType, flip(gz, len(gz)-8)},
		"gzip length":            {gzipType, flip(gz, len(gz)-1)},
		"gzip trailing byte":     {gzipType, join(gz, []byte{0})},
		"gzip trailing zeros":    {gzipType, join(gz, make([]byte, 512))},
		"gzip trailing garbage":  {gzipType, join(gz, content(100))},
		"zstd cut":               {zstdType, zs[:len(zs)/2]},
		"zstd checksum cut":      {zstdType, zs[:len(zs)-1]},
		"zstd flipped":           {zstdType, flip(zs, len(zs)/2)},
		"zstd checksum":          {zstdType, flip(zs, len(zs)-1)},
		"zstd trailing garbage":  {zstdType, join(zs, content(100))},
		"zstd trailing byte":     {zstdType, join(zs, []byte{1})},
		"zstd trailing 3 bytes":  {zstdType, join(zs, []byte{0x28, 0xb5, 0x2f})},
		"zstd skippable frame 1": {zstdType, skippable(make([]byte, 100))[:50]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := readAll(tc.mediaType, bytes.NewReader(tc.blob)); !errdefs.IsDataLoss(err) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestWindowLimit(t *testing.T) {
	t.Parallel()
	// A frame header that asks for 256 MiB, by a window descriptor and by the
	// content size of a single segment.
	for name, blob := range map[string][]byte{
		"window":         {0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 0x01, 0x00, 0x00},
		"single segment": {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0x00, 0x00, 0x00, 0x10, 0x01, 0x00, 0x00},
	} {
		if _, err := readAll(zstdType, bytes.NewReader(blob)); !errdefs.IsInvalidArgument(err) ||
			!strings.Contains(err.Error(), "a window of more than 128 MiB") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// In a second frame it is no better, and all frames share one window.
	small := zstdCompressed(t, content(1000))
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00} // 2 GiB
	if _, err := readAll(zstdType, bytes.NewReader(join(small, huge))); !errdefs.IsInvalidArgument(err) {
		t.Errorf("second frame: %v", err)
	}
}

// The limit is for the window, not for what a frame declares as its size.
func TestLargerThanWindow(t *testing.T) {
	t.Parallel()
	const size = 130 << 20
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	d, err := decompress.NewReader(zstdType, bytes.NewReader(w.EncodeAll(make([]byte, size), nil)))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, d); n != size || err != nil {
		t.Errorf("read %d bytes, error %v", n, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// An error of the blob's reader must not turn into one about the data.
func TestSourceError(t *testing.T) {
	t.Parallel()
	plain, gone := content(200_000), errors.New("connection reset")
	for mediaType, blob := range map[string][]byte{
		tarType:  plain,
		gzipType: gzipped(t, plain),
		zstdType: zstdCompressed(t, plain),
	} {
		for _, n := range []int{0, 3, 12, len(blob) / 2, len(blob)} {
			r := io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(gone))
			if _, err := readAll(mediaType, r); !errors.Is(err, gone) || errdefs.IsDataLoss(err) {
				t.Errorf("%s cut after %d bytes: %v", mediaType, n, err)
			}
		}
	}
}

func TestReadAfterClose(t *testing.T) {
	t.Parallel()
	d, err := decompress.NewReader(gzipType, bytes.NewReader(gzipped(t, content(10))))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(make([]byte, 1)); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func FuzzReader(f *testing.F) {
	plain := content(500)
	f.Add(gzipType, gzipped(f, plain))
	f.Add(zstdType, zstdCompressed(f, plain))
	f.Add(zstdType, join(skippable(nil), zstdCompressed(f, nil)))
	f.Add(tarType, plain)
	f.Fuzz(func(t *testing.T, mediaType string, blob []byte) {
		d, err := decompress.NewReader(mediaType, bytes.NewReader(blob))
		if err != nil {
			return
		}
		_, first := io.CopyN(io.Discard, d, 16<<20)
		if first != nil {
			if _, again := d.Read(make([]byte, 1)); first != again { //nolint:errorlint // the very same
				t.Errorf("error %v is followed by %v", first, again)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	plain := content(8 << 20)
	for mediaType, blob := range map[string][]byte{
		gzipType: gzipped(b, plain),
		zstdType: zstdCompressed(b, plain),
	} {
		b.Run(mediaType[len(tarType)+1:], func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				d, err := decompress.NewReader(mediaType, bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, d); err != nil {
					b.Fatal(err)
				}
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
