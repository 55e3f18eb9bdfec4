// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"fmt"
	"log/slog"

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
	// DefaultMaxRatio is the number of bytes of files for each byte of the tar
	// stream where Options names no other.
	DefaultMaxRatio = 1000

	// ratioFloor is the size of files up to which MaxRatio does not matter.
	ratioFloor = 1 << 30

	// maxPath is the longest name, link target or path of a file in a layer, in
	// bytes. Linux opens no longer one.
	maxPath = unix.PathMax - 1

	// nameCost is about what a name costs in memory beside its own bytes, and
	// dirCost what a directory does.
	nameCost = 64
	dirCost  = 256
)

func (o Options) orDefaults() Options {
	for _, limit := range []struct {
		value *int64
		usual int64
	}{
		{&o.MaxEntries, DefaultMaxEntries},
		{&o.MaxBytes, DefaultMaxBytes},
		{&o.MaxMetadata, DefaultMaxMetadata},
		{&o.MaxRatio, DefaultMaxRatio},
	} {
		if *limit.value <= 0 {
			*limit.value = limit.usual
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// A budget is what a layer has used of its limits.
type budget struct {
	opts                       Options
	src                        *source
	entries, content, metadata int64
	unfolded                   int64 // bytes of sparse files
}

// entry accounts for an entry and its content.
func (b *budget) entry(hdr *tar.Header) error {
	if b.entries++; b.entries > b.opts.MaxEntries {
		return fmt.Errorf("the layer has more than %d entries: %w", b.opts.MaxEntries, limited("max_entries"))
	}
	if len(hdr.Name) > maxPath || len(hdr.Linkname) > maxPath {
		return errTooLong()
	}
	used := len(hdr.Name) + len(hdr.Linkname)
	for key, value := range hdr.PAXRecords {
		used += len(key) + len(value)
	}
	if err := b.remember(used); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return b.file(hdr.Size)
	}
	return nil
}

// file accounts for the size of a file.
func (b *budget) file(size int64) error {
	if size > b.opts.MaxBytes-b.content {
		return fmt.Errorf("the files of the layer have more than %d bytes: %w", b.opts.MaxBytes, limited("max_bytes"))
	}
	b.content += size
	return nil
}

// unfold accounts for n bytes of a file that the stream need not have had.
func (b *budget) unfold(n int) error {
	if b.unfolded += int64(n); b.unfolded > ratioFloor && b.unfolded/b.opts.MaxRatio > b.src.read {
		return fmt.Errorf("the files of the layer have more than %d times the bytes of its tar stream: %w", b.opts.MaxRatio, limited("max_ratio"))
	}
	return nil
}

// remember accounts for bytes that stay in memory, or that are gone through
// again because a link leads there.
func (b *budget) remember(n int) error {
	if b.metadata += int64(n); b.metadata > b.opts.MaxMetadata {
		return fmt.Errorf("names and attributes in the layer have more than %d bytes: %w", b.opts.MaxMetadata, limited("max_metadata"))
	}
	return nil
}

func errTooLong() error {
	return fmt.Errorf("a path is longer than %d bytes, the most that Linux can open, so no option raises this limit: %w", maxPath, errdefs.ErrInvalidArgument)
}
