// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

// tempPrefix begins the names of files that are not complete.
const tempPrefix = ".coffer-"

// layoutImage is an image's place in an OCI layout. Files are written here and
// not by oras: its store rewrites the index in place, in random order and with
// every child manifest in it, and leaves a temporary file when a write fails.
type layoutImage struct {
	ref     Reference
	created bool // the folder was not a layout before

	mu   sync.Mutex
	mine []string // files of blobs that this run wrote
}

// blob returns the name of a blob's file. A digest that is not valid, and could
// lead elsewhere, is an InvalidArgument error.
func (l *layoutImage) blob(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", invalid("%q in OCI layout %s: %w", d, l.ref.Layout, err)
	}
	return l.file(filepath.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())), nil
}

func (l *layoutImage) file(name string) string { return filepath.Join(l.ref.Layout, name) }

// readIndex reads index.json. The error is of class NotFound when the folder
// is no layout.
func (l *layoutImage) readIndex() (ocispec.Index, error) {
	var index ocispec.Index
	data, err := readFile(l.file(ocispec.ImageIndexFile), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return index, classed{fmt.Errorf("no OCI layout in folder %s: it has no %s", l.ref.Layout, ocispec.ImageIndexFile), errdefs.ErrNotFound}
	}
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return index, classed{fmt.Errorf("OCI layout %s: %s: %w", l.ref.Layout, ocispec.ImageIndexFile, err), errdefs.ErrInvalidArgument}
	}
	return index, nil
}

func readFile(name string, limit int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = classed{fmt.Errorf("%s: larger than %d bytes", name, limit), errdefs.ErrInvalidArgument}
	}
	return data, err
}

// root reads the manifest that the reference names.
func (l *layoutImage) root(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	index, err := l.readIndex()
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc, err := l.choose(index)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	data, err := readManifest(ctx, l, desc)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc.Annotations = nil
	if desc.MediaType == "" {
		var typed struct {
			MediaType string `json:"mediaType"`
		}
		if err := json.Unmarshal(data, &typed); err != nil {
			return ocispec.Descriptor{}, nil, invalid("%s: blob %s is no manifest: %w", l.ref, desc.Digest, err)
		}
		desc.MediaType = typed.MediaType
	}
	return desc, data, nil
}

// choose finds the entry of index.json that the reference names.
func (l *layoutImage) choose(index ocispec.Index) (ocispec.Descriptor, error) {
	var tags []string
	for _, desc := range index.Manifests {
		tag := desc.Annotations[ocispec.AnnotationRefName]
		switch {
		case l.ref.Digest != "" && desc.Digest == l.ref.Digest,
			l.ref.Tag != "" && tag == l.ref.Tag,
			l.ref.Tag == "" && l.ref.Digest == "" && len(index.Manifests) == 1:
			return desc, nil
		case tag != "":
			tags = append(tags, tag)
		default:
			tags = append(tags, desc.Digest.String())
		}
	}
	if l.ref.Digest != "" {
		return l.byDigest()
	}
	if len(index.Manifests) == 0 {
		return ocispec.Descriptor{}, classed{fmt.Errorf("OCI layout %s holds no image", l.ref.Layout), errdefs.ErrNotFound}
	}
	found := strings.Join(tags[:min(len(tags), 10)], ", ")
	if l.ref.Tag == "" {
		return ocispec.Descriptor{}, invalid("OCI layout %s holds %d images: name one of %s", l.ref.Layout, len(index.Manifests), found)
	}
	return ocispec.Descriptor{}, classed{fmt.Errorf("OCI layout %s has no image tagged %s: it has %s", l.ref.Layout, l.ref.Tag, found), errdefs.ErrNotFound}
}

// byDigest finds a manifest that only another manifest names.
func (l *layoutImage) byDigest() (ocispec.Descriptor, error) {
	d := l.ref.Digest
	name, err := l.blob(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return ocispec.Descriptor{}, classed{fmt.Errorf("OCI layout %s has no blob %s", l.ref.Layout, d), errdefs.ErrNotFound}
	}
	return ocispec.Descriptor{Digest: d, Size: info.Size()}, nil
}

// fetch opens a manifest or blob. The caller closes it and verifies it.
func (l *layoutImage) fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	name, err := l.blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	body, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, classed{fmt.Errorf("OCI layout %s has no blob %s: the layout is incomplete", l.ref.Layout, desc.Digest), errdefs.ErrNotFound}
	}
	return body, err
}

// prepare refuses a folder that holds something else, and writes nothing.
func (l *layoutImage) prepare() error {
	entries, err := os.ReadDir(l.ref.Layout)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		l.created = true
		return nil
	}
	if err != nil {
		return invalid("OCI layout %s: %w", l.ref.Layout, err)
	}
	_, err = l.readIndex()
	switch {
	case !errdefs.IsNotFound(err):
		return err
	case slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !unfinished(e.Name()) }):
		return invalid("folder %s is neither empty nor an OCI layout: name another folder", l.ref.Layout)
	}
	l.created = true
	return nil
}

// unfinished says whether a run that was killed before it wrote the index may
// have left this in its folder.
func unfinished(name string) bool {
	return name == ocispec.ImageBlobsDir || name == ocispec.ImageLayoutFile || strings.HasPrefix(name, tempPrefix)
}

// exists reports whether the blob is at the destination already.
func (l *layoutImage) exists(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	name, err := l.blob(desc.Digest)
	if err != nil {
		return false, err
	}
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size() == desc.Size, err
}

// push writes one blob. It has its name once its digest has been checked.
func (l *layoutImage) push(ctx context.Context, desc ocispec.Descriptor, body io.Reader) error {
	if ok, err := l.exists(ctx, desc); err != nil || ok {
		return err
	}
	verified := content.NewVerifyReader(body, desc)
	name, err := l.blob(desc.Digest)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o755) //nolint:gosec // a layout is for everybody, as the umask allows
	}
	if err == nil {
		err = l.replace(name, func(file io.Writer) error {
			if _, err := io.CopyBuffer(file, struct{ io.Reader }{verified}, make([]byte, copyBuffer)); err != nil {
				return err
			}
			return verified.Verify()
		})
	}
	if err != nil {
		return fmt.Errorf("write blob %s to OCI layout %s: %w", desc.Digest, l.ref.Layout, fileError(l.ref.Layout, desc.Size, err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mine = append(l.mine, name)
	return nil
}

// pushManifest writes a manifest that another one names by digest.
func (l *layoutImage) pushManifest(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	return l.push(ctx, desc, bytes.NewReader(data))
}

// commit writes the root manifest and puts it into index.json in one step. An
// entry of the same tag is replaced; all others stay as they are.
func (l *layoutImage) commit(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	if err := l.pushManifest(ctx, desc, data); err != nil {
		return err
	}
	unlock, err := lockDir(l.ref.Layout)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := l.readIndex()
	if errdefs.IsNotFound(err) {
		index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	} else if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(old ocispec.Descriptor) bool {
		tag := old.Annotations[ocispec.AnnotationRefName]
		return tag == l.ref.Tag && (tag != "" || old.Digest == desc.Digest)
	})
	if l.ref.Tag != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: l.ref.Tag}
	}
	index.Manifests = append(index.Manifests, desc)
	if err := l.replaceJSON(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	return l.replaceJSON(ocispec.ImageIndexFile, index)
}

func (l *layoutImage) replaceJSON(name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	err = l.replace(l.file(name), func(file io.Writer) error {
		_, err := file.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("write %s of OCI layout %s: %w", name, l.ref.Layout, fileError(l.ref.Layout, int64(len(data)), err))
	}
	return nil
}

// replace writes a file that is either the old one or, complete, the new one.
func (l *layoutImage) replace(name string, write func(io.Writer) error) error {
	temp, err := os.CreateTemp(l.ref.Layout, tempPrefix+"*")
	if err != nil {
		return err
	}
	err = write(temp)
	if err == nil {
		err = errors.Join(temp.Chmod(0o644), temp.Sync())
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// abort removes what this run wrote.
func (l *layoutImage) abort(context.Context) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := 0
	for _, name := range l.mine {
		if os.Remove(name) != nil {
			left++
		}
	}
	if l.created {
		_ = os.Remove(l.file(ocispec.ImageLayoutFile))
		for _, folder := range []string{ocispec.ImageBlobsDir + "/" + digest.Canonical.String(), ocispec.ImageBlobsDir, "."} {
			_ = os.Remove(l.file(folder)) // stays when it is not empty
		}
	}
	if left > 0 {
		return fmt.Sprintf("index of OCI layout %s is unchanged; %d blobs could not be removed from it", l.ref.Layout, left)
	}
	return fmt.Sprintf("OCI layout %s is as it was", l.ref.Layout)
}

// readManifest reads a manifest or index and verifies it.
func readManifest(ctx context.Context, from source, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, tooLarge(desc.Digest.String(), desc)
	}
	return readBlob(ctx, from, desc)
}

func readBlob(ctx context.Context, from source, desc ocispec.Descriptor) ([]byte, error) {
	body, err := from.fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := content.ReadAll(body, desc)
	if err != nil {
		return nil, damaged(desc, err)
	}
	return data, nil
}
