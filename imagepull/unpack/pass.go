// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"

	// maxPath is the longest name or hard link target of an entry, in bytes. No
	// longer one can be opened, and resolving one takes quadratic time.
	maxPath = unix.PathMax - 1
)

// A pass watches the entries of one layer go by: it enforces the limits, learns
// which directories the layer leaves unsaid, and gives whiteouts the meaning
// that the image specification gives them whatever their order: they hide what
// is in the layers below, and never what is in their own.
type pass struct {
	inside           *inside
	opts             Options
	entries, content int64
	metadata         int64               // bytes of names and attributes so far
	dirs             map[string]bool     // directories needed; true where the layer lists them
	whiteouts        map[string]struct{} // paths that hold a whiteout
	opaque           []string            // directories to be made opaque at the end
}

func newPass(in *inside, opts Options) *pass {
	return &pass{
		inside:    in,
		opts:      opts,
		dirs:      make(map[string]bool),
		whiteouts: make(map[string]struct{}),
	}
}

// filter sees each header first, with its name cleaned but not yet resolved.
func (p *pass) filter(hdr *tar.Header) (bool, error) {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if p.entries++; p.entries > p.opts.MaxEntries {
		return false, fmt.Errorf("the layer has more than %d entries (MaxEntries): %w", p.opts.MaxEntries, errdefs.ErrInvalidArgument)
	}
	if len(hdr.Name) > maxPath || len(hdr.Linkname) > maxPath {
		return false, fmt.Errorf("entry %.64q...: a path is longer than %d bytes: %w", hdr.Name, maxPath, errdefs.ErrInvalidArgument)
	}
	p.metadata += int64(len(hdr.Name) + len(hdr.Linkname))
	for key, value := range hdr.PAXRecords {
		p.metadata += int64(len(key) + len(value))
	}
	if p.metadata > p.opts.MaxMetadata {
		return false, fmt.Errorf("names and attributes in the layer have more than %d bytes (MaxMetadata): %w", p.opts.MaxMetadata, errdefs.ErrInvalidArgument)
	}
	if hdr.Typeflag == tar.TypeReg {
		// A sparse file takes its whole size here, and next to nothing of the stream.
		if hdr.Size > p.opts.MaxBytes-p.content {
			return false, fmt.Errorf("the files of the layer have more than %d bytes (MaxBytes): %w", p.opts.MaxBytes, errdefs.ErrInvalidArgument)
		}
		p.content += hdr.Size
	}
	return true, p.reveal(hdr.Name)
}

// reveal takes away a whiteout of this layer that stands where the entry needs
// a directory. The directory then hides what the whiteout hid.
func (p *pass) reveal(name string) error {
	if len(p.whiteouts) == 0 {
		return nil
	}
	for dir := filepath.Dir(filepath.Join("/", name)); dir != "/"; dir = filepath.Dir(dir) {
		path := filepath.Join(p.inside.root, dir)
		if _, found := p.whiteouts[path]; !found {
			continue
		}
		delete(p.whiteouts, path)
		removed, err := p.inside.removeWhiteout(path)
		if err != nil {
			return err
		}
		if removed {
			p.opaque = append(p.opaque, path)
			p.dirs[path] = true // what was there below is gone, its attributes too
		}
	}
	return nil
}

// convert sees each entry once its path is resolved and its parents are there,
// just before it is written. It reports whether it is to be written.
func (p *pass) convert(hdr *tar.Header, path string) (bool, error) {
	p.need(filepath.Dir(path))
	dir, base := filepath.Split(path)
	if base == whiteoutOpaque {
		return false, p.inside.setOpaque(filepath.Clean(dir))
	}
	if hidden, found := strings.CutPrefix(base, whiteoutPrefix); found {
		return false, p.whiteout(hdr, path, dir+hidden)
	}
	delete(p.whiteouts, path)
	if hdr.Typeflag != tar.TypeDir {
		delete(p.dirs, path)
		return true, nil
	}
	p.dirs[path] = true
	if info, err := os.Lstat(path); err == nil && !info.IsDir() {
		// What it replaces, a whiteout or a file, hid what is below.
		p.opaque = append(p.opaque, path)
	}
	return true, nil
}

// whiteout hides target in the layers below. Where this layer has a file of
// that name, that file does it; a directory does it once it is opaque.
func (p *pass) whiteout(hdr *tar.Header, path, target string) error {
	switch info, err := os.Lstat(target); {
	case err == nil && info.IsDir():
		p.dirs[target] = true // it has nothing of what it hides
		return p.inside.setOpaque(target)
	case err == nil:
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if _, err := archive.OverlayConvertWhiteout(hdr, path); err != nil {
		return err
	}
	p.whiteouts[target] = struct{}{}
	return nil
}

// need notes that dir and the directories above it have to be there.
func (p *pass) need(dir string) {
	for ; len(dir) > len(p.inside.root); dir = filepath.Dir(dir) {
		if _, known := p.dirs[dir]; known {
			return
		}
		p.dirs[dir] = false
	}
}

// finish does what could not be done before all entries had gone by.
func (p *pass) finish() error {
	for _, dir := range p.opaque {
		if err := p.inside.setOpaque(dir); err != nil {
			return err
		}
	}
	return nil
}

// implicit returns the directories that are there but not listed.
func (p *pass) implicit() ([]string, error) {
	var names []string
	for dir, listed := range p.dirs {
		if listed {
			continue
		}
		if there, err := p.inside.isDirectory(dir); err != nil {
			return nil, err
		} else if there { // no later entry replaced it, or a directory above it
			names = append(names, strings.TrimPrefix(dir, p.inside.root+"/"))
		}
	}
	slices.Sort(names)
	return names, nil
}

// markOpaque makes overlayfs hide what the layers below have in dir.
func markOpaque(dir *os.File) error {
	err := unix.Fsetxattr(int(dir.Fd()), opaqueXattr, []byte{'y'}, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("set %s: the file system has no trusted extended attributes; use ext4, xfs, btrfs or tmpfs for the image store: %w",
			opaqueXattr, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return &os.PathError{Op: "fsetxattr", Path: dir.Name(), Err: err}
	}
	return nil
}
