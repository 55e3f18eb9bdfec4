// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// parts are the folders that get a layer of their own, with its compression.
// What is in none of them is in the lowest layer.
func parts() []struct {
	prefix      string
	compression testbed.Compression
} {
	return []struct {
		prefix      string
		compression testbed.Compression
	}{
		{"", testbed.Gzip},
		{"usr/lib/", testbed.Gzip},
		{"usr/share/", testbed.Zstd},
		{"usr/bin/", testbed.Gzip},
	}
}

// split writes the entries of a root file system's tar to layers, whose files
// it makes in dir.
func split(ctx context.Context, rootfs, dir string) (layers []v1.Layer, err error) {
	in, err := os.Open(rootfs)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	var files []*testbed.LayerFile
	var writers []*tar.Writer
	for _, p := range parts() {
		f, err := testbed.CreateLayer(dir, p.compression)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		files, writers = append(files, f), append(writers, tar.NewWriter(f))
	}
	if err := distribute(ctx, tar.NewReader(in), writers); err != nil {
		return nil, err
	}
	for i, w := range writers {
		if err := w.Close(); err != nil {
			return nil, err
		}
		layer, err := files[i].Layer()
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

func distribute(ctx context.Context, in *tar.Reader, writers []*tar.Writer) error {
	for ctx.Err() == nil {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.TrimPrefix(h.Linkname, "./")
		}
		if h.Name == "" || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			continue // the runtime makes /dev
		}
		w := writers[part(h)]
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// part is the index of an entry's part. A hard link goes where its target is.
func part(h *tar.Header) int {
	name := h.Name
	if h.Typeflag == tar.TypeLink {
		name = h.Linkname
	}
	for i, p := range parts() {
		if i > 0 && strings.HasPrefix(name, p.prefix) {
			return i
		}
	}
	return 0
}
