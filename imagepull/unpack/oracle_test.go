// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// A state is all there is to know about a file.
type state struct {
	Mode, UID, GID uint32
	Device         uint64
	Size           int64
	Content        string // its digest, or where a symbolic link leads
	Atime, Mtime   unix.Timespec
	Xattrs         map[string]string
	First          string // the first of its names
	Links          uint64
}

func (s state) isWhiteout() bool { return s.Mode&unix.S_IFMT == unix.S_IFCHR && s.Device == 0 }

// states describes root, without its times, and all files below it.
func states(t testing.TB, root string) map[string]state {
	t.Helper()
	all := make(map[string]state)
	first, before := make(map[uint64]string), make(map[uint64]unix.Stat_t) // it was read
	hash, buf := sha256.New(), make([]byte, 64<<10)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		if path == root {
			name, st.Atim, st.Mtim = ".", unix.Timespec{}, unix.Timespec{}
		}
		if first[st.Ino] == "" {
			first[st.Ino], before[st.Ino] = name, st
		}
		st = before[st.Ino]
		s := state{
			Mode: st.Mode, UID: st.Uid, GID: st.Gid, Device: st.Rdev, Atime: st.Atim, Mtime: st.Mtim,
			Xattrs: xattrs(t, path, buf), First: first[st.Ino],
		}
		if !d.IsDir() { // which have as many as the file system likes
			s.Links, s.Size = uint64(st.Nlink), st.Size //nolint:unconvert // narrower on arm64
		}
		switch {
		case d.Type().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			hash.Reset()
			_, err = io.CopyBuffer(hash, struct{ io.Reader }{f}, buf)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			s.Content = hex.EncodeToString(hash.Sum(nil))
		case d.Type()&fs.ModeSymlink != 0:
			if s.Content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		all[name] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrs(t testing.TB, path string, b []byte) map[string]string {
	t.Helper()
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Fatal(path, err)
	}
	var all map[string]string
	if n == 0 {
		return nil
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		value, err := getxattr(path, name)
		if err != nil {
			t.Fatal(path, name, err)
		}
		if all == nil {
			all = make(map[string]string)
		}
		all[name] = string(value)
	}
	return all
}

// forget removes what depends on when it was made: the times of whiteouts,
// which nobody sees, of directories that a layer does not list, and when a
// symbolic link was last followed.
func forget(all map[string]state, implicit []string, start time.Time) {
	isImplicit := make(map[string]bool, len(implicit))
	for _, name := range implicit {
		isImplicit[name] = true
	}
	for name, s := range all {
		if s.isWhiteout() || isImplicit[name] {
			s.Atime, s.Mtime = unix.Timespec{}, unix.Timespec{}
		}
		if s.Mode&unix.S_IFMT == unix.S_IFLNK && s.Atime.Sec >= start.Unix() {
			s.Atime = unix.Timespec{}
		}
		all[name] = s
	}
}

// contest is what two appliers make of one stream.
type contest struct {
	ours, theirs       map[string]state // nil after an error
	oursErr, theirsErr error
	facts              unpack.Facts
	dir                string // of ours
}

func compete(ctx context.Context, t testing.TB, base string, stream []byte) contest {
	t.Helper()
	return competeOn(ctx, t, base, func() io.Reader { return bytes.NewReader(stream) })
}

// competeOn opens the stream once for each of them.
func competeOn(ctx context.Context, t testing.TB, base string, stream func() io.Reader) contest {
	t.Helper()
	ours, theirs := filepath.Join(base, "jail/ours"), filepath.Join(base, "jail/theirs")
	for _, dir := range []string{filepath.Dir(ours), ours, theirs} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	c, start := contest{dir: ours}, time.Now()
	c.facts, c.oursErr = unpack.New(unpack.Options{}).Apply(ctx, ours, stream())
	_, c.theirsErr = archive.Apply(ctx, theirs, stream(), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	if c.oursErr == nil {
		c.ours = states(t, ours)
		forget(c.ours, c.facts.Implicit, start)
	}
	if c.theirsErr == nil {
		c.theirs = states(t, theirs)
		forget(c.theirs, c.facts.Implicit, start)
	}
	return c
}

func (c contest) diff() string {
	if (c.oursErr == nil) != (c.theirsErr == nil) {
		return fmt.Sprintf("coffer ends with %v, containerd with %v", c.oursErr, c.theirsErr)
	}
	if reflect.DeepEqual(c.theirs, c.ours) { // which is much faster for large trees
		return ""
	}
	return cmp.Diff(c.theirs, c.ours)
}

// measured checks the facts about a layer against its files.
func measured(t testing.TB, dir string, facts unpack.Facts) {
	t.Helper()
	var size, inodes int64
	seen := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			size, inodes = size+st.Blocks*512, inodes+1
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if facts.Inodes != inodes || facts.Size != size {
		t.Errorf("there are %d files in %d bytes, and the facts say %d in %d", inodes, size, facts.Inodes, facts.Size)
	}
}
