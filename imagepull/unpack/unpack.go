// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package unpack writes a layer's tar stream into a directory that overlayfs
// can use as a lower layer: whiteouts become what overlayfs takes for them, and
// each layer is applied alone, without the layers below it.
//
// The stream is hostile: it is unpacked before anything about it has been
// verified. The directory is empty at first and nobody else writes there, so the
// package knows every directory in it (tree.go) and resolves paths, symbolic
// links among them, on its own. The kernel is only given single names relative
// to the descriptor of a directory, and descriptors are opened such that no link
// is followed (handles.go): nothing reaches a file outside. Entries, bytes, path
// lengths and what is kept in memory are bounded (limits.go). What is unpacked
// must stay invisible until the caller has verified the stream, and be deleted
// if that fails.
//
// What a layer becomes is what containerd's applier makes of it, but for the
// cases that testdata/differences.md lists with their reasons.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/containerd/errdefs"
)

// Options bound what one layer may use. The zero value is the safe default.
type Options struct {
	// MaxEntries is the largest number of tar entries; 0 is DefaultMaxEntries.
	MaxEntries int64
	// MaxBytes is the largest size of the tar stream, and of the files in it
	// together, in bytes; 0 is DefaultMaxBytes.
	MaxBytes int64
	// MaxMetadata is the largest size of names, link targets and extended
	// attributes of all entries together, in bytes, with what is kept in memory
	// for each directory; 0 is DefaultMaxMetadata.
	MaxMetadata int64
	// MaxRatio is how many bytes of files there may be for each byte of the tar
	// stream, which only sparse files make more than one, once they are more
	// than a GiB; 0 is DefaultMaxRatio.
	MaxRatio int64
	// Logger is told of extended attributes that have no meaning here and are
	// left out; nil is silent.
	Logger *slog.Logger
}

// Facts say what a layer is, once unpacked.
type Facts struct {
	// Size is the disk space that the layer takes, in bytes: what the file
	// system said at each file when it was complete.
	Size int64
	// Inodes is the number of files of any kind, the layer's root included and
	// hard links to one file counted once.
	Inodes int64
	// Implicit names the directories that entries of the layer are in and that
	// the layer itself does not list: relative to the root, slash separated,
	// parents first. They were made with mode 0755 and owner root, and should
	// get what the same directory in the layers below has.
	Implicit []string
}

// Tar unpacks tar streams. It serves any number of layers at a time.
type Tar struct {
	opts Options
}

// New returns a Tar with these limits.
func New(opts Options) *Tar {
	return &Tar{opts: opts.orDefaults()}
}

// Apply unpacks the tar stream r into dir, an empty directory, and then reads r
// to its end, since what checks the stream must see all of it. dir gets mode
// 0755 whatever the umask. Apply needs the privileges to change owners, to make
// device files and to set trusted extended attributes.
//
// An error of r is returned wrapped and keeps its class; so does that of ctx. A
// stream that is no tar, or that asks for something impossible or over a limit,
// is errdefs.ErrInvalidArgument; a directory that is not empty, or on a file
// system that cannot hold what the layer has, errdefs.ErrFailedPrecondition.
// Errors of the file system stay what they are, a full one included. After an
// error dir holds an unusable part of the layer.
func (t *Tar) Apply(ctx context.Context, dir string, r io.Reader) (Facts, error) {
	root, err := prepare(dir)
	if err != nil {
		return Facts{}, err
	}
	defer root.Close()
	src := &source{ctx: ctx, r: r, limit: t.opts.MaxBytes}
	l := newLayer(int(root.Fd()), src, t.opts)
	defer l.open.close()
	facts, err := l.apply(src)
	if err != nil {
		return Facts{}, explain(ctx, src, err)
	}
	return facts, nil
}

// prepare makes sure that dir is an empty directory with the mode of a root,
// and opens it.
func prepare(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	switch _, err = f.Readdirnames(1); {
	case err == nil:
		err = fmt.Errorf("unpack into %s: the directory is not empty: %w", dir, errdefs.ErrFailedPrecondition)
	case errors.Is(err, io.EOF):
		err = f.Chmod(0o755)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// apply goes through all entries, and then through the rest of the stream.
func (l *layer) apply(src *source) (Facts, error) {
	r := tar.NewReader(src)
	for {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Facts{}, headerError(src, err)
		}
		if err := l.entry(hdr, r); err != nil {
			return Facts{}, fmt.Errorf("entry %s: %w", short(hdr.Name), err)
		}
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{src}, l.buf); err != nil {
		return Facts{}, err
	}
	return l.finish()
}

// onlyReader hides other methods, so that a copy uses the buffer it is given.
type onlyReader struct{ io.Reader }
