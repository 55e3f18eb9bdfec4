// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package unpack writes a layer's tar stream into a directory that overlayfs
// can use as a lower layer: whiteouts become what overlayfs takes for them, and
// each layer is applied alone, without the layers below it.
//
// The stream is hostile: it is unpacked before anything about it has been
// verified. Nothing in it reaches a file outside the directory, and entries,
// bytes and path lengths are bounded. What is unpacked must stay invisible until
// the caller has verified the stream, and be deleted if that fails.
package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// DefaultMaxEntries is the number of tar entries that a layer may have
	// where Options names no other.
	DefaultMaxEntries = 4_000_000
	// DefaultMaxBytes is the number of bytes that a layer may unpack to where
	// Options names no other: 512 GiB, above any layer seen in practice.
	DefaultMaxBytes = 512 << 30
	// DefaultMaxMetadata is the number of bytes that names and attributes may
	// have where Options names no other: room for some two million files.
	DefaultMaxMetadata = 256 << 20
)

// Options bound what one layer may use. The zero value is the safe default.
type Options struct {
	// MaxEntries is the largest number of tar entries; 0 is DefaultMaxEntries.
	MaxEntries int64
	// MaxBytes is the largest size of the tar stream, and of the files in it
	// together, in bytes; 0 is DefaultMaxBytes.
	MaxBytes int64
	// MaxMetadata is the largest size of names, link targets and extended
	// attributes of all entries together, in bytes, since many of them stay in
	// memory until the last entry; 0 is DefaultMaxMetadata.
	MaxMetadata int64
}

// Facts say what a layer is, once unpacked.
type Facts struct {
	// Size is the disk space that the layer takes, in bytes.
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

// Tar unpacks tar streams. It has no state and serves any number of layers at a
// time.
type Tar struct {
	opts Options
}

// New returns a Tar with these limits.
func New(opts Options) *Tar {
	if opts.MaxEntries <= 0 {
		opts.MaxEntries = DefaultMaxEntries
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	if opts.MaxMetadata <= 0 {
		opts.MaxMetadata = DefaultMaxMetadata
	}
	return &Tar{opts: opts}
}

// Apply unpacks the tar stream r into dir, an empty directory, and then reads r
// to its end, since what checks the stream must see all of it. dir gets mode
// 0755 whatever the umask. Apply needs the privileges to change owners, to make
// device files and to set trusted extended attributes.
//
// An error of r is returned wrapped and keeps its class; so does that of ctx. A
// stream that is no tar, or that asks for something impossible or over a limit,
// is errdefs.ErrInvalidArgument; a directory that is not empty, or on a file
// system without extended attributes, errdefs.ErrFailedPrecondition. Errors of
// the file system stay what they are, a full one included. After an error dir
// holds an unusable part of the layer.
func (t *Tar) Apply(ctx context.Context, dir string, r io.Reader) (Facts, error) {
	if err := prepare(dir); err != nil {
		return Facts{}, err
	}
	in, err := newInside(filepath.Clean(dir))
	if err != nil {
		return Facts{}, err
	}
	defer in.close()
	src := &source{ctx: ctx, r: r, limit: t.opts.MaxBytes}
	p := newPass(in, t.opts)
	_, err = archive.Apply(ctx, dir, src,
		archive.WithFilter(p.filter),
		archive.WithConvertWhiteout(p.convert),
	)
	if err == nil {
		_, err = io.CopyBuffer(io.Discard, onlyReader{src}, make([]byte, 64<<10))
	}
	if err == nil {
		err = p.finish()
	}
	if err != nil {
		return Facts{}, explain(ctx, src, err)
	}
	facts, err := measure(ctx, dir)
	if err != nil {
		return Facts{}, explain(ctx, src, err)
	}
	facts.Implicit, err = p.implicit()
	if err != nil {
		return Facts{}, err
	}
	return facts, nil
}

// prepare makes sure that dir is an empty directory with the mode of a root.
func prepare(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	switch _, err := f.Readdirnames(1); {
	case err == nil:
		return fmt.Errorf("unpack into %s: the directory is not empty: %w", dir, errdefs.ErrFailedPrecondition)
	case !errors.Is(err, io.EOF):
		return err
	}
	return f.Chmod(0o755)
}

// explain gives an error its class. The reader's own error and the context's go
// first, since everything that follows from them is no news.
func explain(ctx context.Context, src *source, err error) error {
	if src.err != nil {
		return fmt.Errorf("read layer: %w", src.err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("unpack layer: %w", context.Cause(ctx))
	}
	var errno unix.Errno
	var link *os.LinkError
	switch {
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("unpack layer: %w", err)
	case !errors.As(err, &errno):
		// No system call failed, so it is the tar that is wrong.
		return fmt.Errorf("unpack layer: %w: %w", errdefs.ErrInvalidArgument, err)
	case impossible(errno), errno == unix.EPERM && errors.As(err, &link):
		// EPERM is what the kernel says to a hard link to a directory.
		return fmt.Errorf("unpack layer: an entry cannot be made: %w: %w", errdefs.ErrInvalidArgument, err)
	default:
		return fmt.Errorf("unpack layer: %w", err)
	}
}

// impossible reports whether a system call failed for what the layer asked for,
// rather than for the state of this machine.
func impossible(errno unix.Errno) bool {
	switch errno {
	case unix.EEXIST, unix.EINVAL, unix.EISDIR, unix.ELOOP, unix.EMLINK,
		unix.ENAMETOOLONG, unix.ENOENT, unix.ENOTDIR, unix.ERANGE, unix.E2BIG:
		return true
	default:
		return false
	}
}

// source counts and bounds the stream, remembers its error, and ends it when
// the context ends.
type source struct {
	ctx   context.Context //nolint:containedctx // lives as long as one call of Apply
	r     io.Reader
	limit int64 // bytes still allowed
	err   error // of r, other than io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	if s.limit -= int64(n); s.limit < 0 {
		return n, fmt.Errorf("the tar stream is larger than MaxBytes: %w", errdefs.ErrInvalidArgument)
	}
	return n, err
}

// onlyReader hides other methods, so that a copy uses the buffer it is given.
type onlyReader struct{ io.Reader }
