// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const blockSize = 512 // the unit of st_blocks

// measure adds up the disk space and the files below dir, dir included.
func measure(ctx context.Context, dir string) (Facts, error) {
	m := meter{links: make(map[uint64]struct{})}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return Facts{}, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	m.add(&st)
	pending := []string{dir}
	for len(pending) > 0 {
		if err := ctx.Err(); err != nil {
			return Facts{}, err
		}
		next := pending[len(pending)-1]
		below, err := m.directory(next)
		if err != nil {
			return Facts{}, err
		}
		pending = append(pending[:len(pending)-1], below...)
	}
	return m.facts, nil
}

// A meter counts files, each once however many names it has.
type meter struct {
	facts Facts
	links map[uint64]struct{} // inode numbers of files with several names
}

// directory counts what is in dir and returns the directories among it. Files
// are looked up relative to dir, which saves resolving long paths.
func (m *meter) directory(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var below []string
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, &os.PathError{Op: "fstatat", Path: filepath.Join(dir, name), Err: err}
		}
		m.add(&st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below = append(below, filepath.Join(dir, name))
		}
	}
	return below, nil
}

func (m *meter) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, counted := m.links[st.Ino]; counted {
			return
		}
		m.links[st.Ino] = struct{}{}
	}
	m.facts.Size += st.Blocks * blockSize
	m.facts.Inodes++
}
