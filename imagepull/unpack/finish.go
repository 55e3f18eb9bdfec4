// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"slices"

	"golang.org/x/sys/unix"
)

// finish does what must wait for the last entry: directories get their times,
// the deepest first, and are counted.
func (l *layer) finish() (Facts, error) {
	var st unix.Stat_t
	if err := unix.Fstat(l.root.fd, &st); err != nil {
		return Facts{}, failed("fstat", err)
	}
	l.count(&st, 1)
	if _, err := l.finishBelow(l.root, nil); err != nil {
		return Facts{}, err
	}
	slices.Sort(l.facts.Implicit)
	l.reportIgnored(l.src.ctx)
	return l.facts, nil
}

// finishBelow finishes the directories in d, whose path with a slash behind it
// is given. It returns a path that begins with d's, of any directory in it, as
// one string serves for all the directories that lead there.
func (l *layer) finishBelow(d *dir, path []byte) (string, error) {
	if len(d.dirs) == 0 {
		return string(path), nil
	}
	if err := l.src.ctx.Err(); err != nil {
		return "", err
	}
	var full string
	for name, child := range d.dirs {
		below := append(append(path, name...), '/')
		deep, err := l.finishBelow(child, below)
		if err != nil {
			return "", err
		}
		if !child.listed {
			l.facts.Implicit = append(l.facts.Implicit, deep[:len(below)-1])
		}
		full = deep
	}
	fd, err := l.open.descriptor(d)
	if err != nil {
		return "", err
	}
	for name, child := range d.dirs {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", failed("fstatat", err)
		}
		l.count(&st, 1)
		if !child.timed {
			continue
		}
		if err := unix.UtimesNanoAt(fd, name, child.times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return "", failed("utimensat", err)
		}
	}
	return full, nil
}
