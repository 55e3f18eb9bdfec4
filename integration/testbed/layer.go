// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Compression of a layer.
type Compression string

// The compressions that the OCI image specification names.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	None Compression = "none"
)

func (c Compression) mediaType() types.MediaType {
	switch c {
	case Gzip:
		return types.OCILayer
	case Zstd:
		return types.OCILayerZStd
	default:
		return types.OCIUncompressedLayer
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	case None:
		return nopCloser{w}, nil
	default:
		return nil, fmt.Errorf("unknown compression %q", c)
	}
}

// LayerWriter compresses a layer's tar stream and computes its digests.
type LayerWriter struct {
	compression Compression
	w           io.WriteCloser
	size        int64
	blob, diff  hash.Hash
}

func newLayerWriter(to io.Writer, c Compression) (*LayerWriter, error) {
	l := &LayerWriter{compression: c, blob: sha256.New(), diff: sha256.New()}
	var err error
	l.w, err = c.writer(io.MultiWriter(to, l.blob, (*counter)(&l.size)))
	return l, err
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// Write takes the next bytes of the tar stream.
func (l *LayerWriter) Write(b []byte) (int, error) {
	n, err := l.w.Write(b)
	l.diff.Write(b[:n])
	return n, err
}

// finish ends the stream and makes the layer, whose blob open opens.
func (l *LayerWriter) finish(open func() (io.ReadCloser, error)) (v1.Layer, error) {
	if err := l.w.Close(); err != nil {
		return nil, err
	}
	sum := func(h hash.Hash) v1.Hash {
		return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	}
	return &layer{digest: sum(l.blob), diffID: sum(l.diff), size: l.size, media: l.compression.mediaType(), open: open}, nil
}

// NewLayer makes a layer of a tar stream, in memory.
func NewLayer(tar []byte, c Compression) (v1.Layer, error) {
	var blob bytes.Buffer
	w, err := newLayerWriter(&blob, c)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(tar); err != nil {
		return nil, err
	}
	return w.finish(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob.Bytes())), nil })
}

// LayerFile is a layer that is written to a file.
type LayerFile struct {
	*LayerWriter
	file *os.File
}

// CreateLayer makes a new file in dir for a layer. The caller closes it.
func CreateLayer(dir string, c Compression) (*LayerFile, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, err
	}
	w, err := newLayerWriter(f, c)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &LayerFile{LayerWriter: w, file: f}, nil
}

// Layer ends the stream. The layer's blob is in the file.
func (l *LayerFile) Layer() (v1.Layer, error) {
	return l.finish(func() (io.ReadCloser, error) { return os.Open(l.file.Name()) })
}

// Close closes the file, which stays.
func (l *LayerFile) Close() error { return l.file.Close() }

// layer is a v1.Layer with known digests.
type layer struct {
	digest, diffID v1.Hash
	size           int64
	media          types.MediaType
	open           func() (io.ReadCloser, error)
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.media, nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return l.open() }
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("the layer is compressed")
}
