// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// The forms in which an image is stored.
type form struct {
	Zstd bool
	// Quick compresses in a third of the time, by another gzip writer: for
	// data whose exact form does not matter.
	Quick bool
}

func (f form) mediaType(sealed bool) string {
	t := ocispec.MediaTypeImageLayerGzip
	if f.Zstd {
		t = ocispec.MediaTypeImageLayerZstd
	}
	if sealed {
		t += "+encrypted"
	}
	return t
}

func (f form) compressor(w io.Writer) (io.WriteCloser, error) {
	switch {
	case f.Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case f.Quick:
		return kgzip.NewWriterLevel(w, 6)
	default:
		return gzip.NewWriterLevel(w, 6)
	}
}

// image says what is to be generated under a name. A layer's seed is its
// number on top of Seed.
type image struct {
	Name   string
	Layers []shape
	Seed   uint64
	Form   form
	// Plain stores the image a second time, not encrypted, as Name-plain.
	Plain bool
}

func plainName(image string) string { return image + "-plain" }

// generate is the job that puts an image into the cache.
func generate(ctx context.Context, j job) (sample, error) {
	return sample{}, newGenerator().image(ctx, cache{j.Cache}, *j.Generate)
}

// layerFile is a layer in the cache: encrypted, and perhaps plain.
type layerFile struct {
	sealed, plain ocispec.Descriptor
	diffID        digest.Digest
}

func (g *generator) image(ctx context.Context, c cache, img image) error {
	_, public, err := c.keys()
	if err != nil {
		return err
	}
	layers := make([]layerFile, len(img.Layers))
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, s := range img.Layers {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			layers[i], err = g.layer(ctx, c, img, s, img.Seed+uint64(i), public)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if img.Plain {
		if err := c.manifest(plainName(img.Name), layers, func(l layerFile) ocispec.Descriptor { return l.plain }); err != nil {
			return err
		}
	}
	return c.manifest(img.Name, layers, func(l layerFile) ocispec.Descriptor { return l.sealed })
}

// layer writes the blobs of a layer: tar, compression, encryption, file.
func (g *generator) layer(ctx context.Context, c cache, img image, s shape, seed uint64, public []byte) (l layerFile, err error) {
	out, err := newBlobWriter(c)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, out.close()) }()
	seal, err := newSealer(out, fmt.Sprintf("%s %d", img.Name, seed))
	if err != nil {
		return l, err
	}
	sink, plain := io.Writer(seal), (*blobWriter)(nil)
	if img.Plain {
		if plain, err = newBlobWriter(c); err != nil {
			return l, err
		}
		defer func() { err = errors.Join(err, plain.close()) }()
		sink = io.MultiWriter(seal, plain)
	}
	compressed, err := img.Form.compressor(sink)
	if err != nil {
		return l, err
	}
	diff := sha256.New()
	// The tar writer writes in pieces of any size.
	tar := bufio.NewWriterSize(io.MultiWriter(stopper{ctx}, compressed, diff), 256<<10)
	if err := errors.Join(g.write(tar, s, seed), tar.Flush(), compressed.Close()); err != nil {
		return l, err
	}
	l.diffID = digest.Digest(hexDigest(diff))
	if l.sealed, err = out.finish(img.Form.mediaType(true)); err != nil {
		return l, err
	}
	if plain != nil {
		if l.plain, err = plain.finish(img.Form.mediaType(false)); err != nil {
			return l, err
		}
	}
	l.sealed.Annotations, err = seal.annotations(public)
	return l, err
}

// blobWriter writes a blob of the cache.
type blobWriter struct {
	cache cache
	file  *os.File
	buf   *bufio.Writer
	hash  hash.Hash
	size  int64
}

func newBlobWriter(c cache) (*blobWriter, error) {
	f, err := os.CreateTemp(filepath.Join(c.dir, "blobs"), "new-")
	if err != nil {
		return nil, err
	}
	return &blobWriter{cache: c, file: f, buf: bufio.NewWriterSize(f, 1<<20), hash: sha256.New()}, nil
}

func (w *blobWriter) Write(b []byte) (int, error) {
	w.hash.Write(b)
	w.size += int64(len(b))
	return w.buf.Write(b)
}

// finish gives the blob its name.
func (w *blobWriter) finish(mediaType string) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(hexDigest(w.hash)), Size: w.size}
	return d, errors.Join(w.buf.Flush(), os.Rename(w.file.Name(), w.cache.blob(d.Digest)))
}

// close removes a blob that was not finished.
func (w *blobWriter) close() error {
	err := os.Remove(w.file.Name())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, w.file.Close())
}

// manifest writes config and manifest and makes the image known.
func (c cache) manifest(name string, layers []layerFile, blob func(layerFile) ocispec.Descriptor) error {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, blob(l))
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	d, err := c.put(b)
	if err != nil {
		return err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d, Size: int64(len(b))}
	if b, err = json.Marshal(m); err != nil {
		return err
	}
	if d, err = c.put(b); err != nil {
		return err
	}
	return c.record(name, d)
}

func hexDigest(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// stopper is a writer that fails once the context has ended.
type stopper struct{ ctx context.Context } //nolint:containedctx // lives as long as one copy

func (s stopper) Write(b []byte) (int, error) { return len(b), s.ctx.Err() }
