// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// attributes are what a file is to have.
type attributes struct {
	mode     uint32 // permissions, set-id and sticky bits
	uid, gid int
	times    [2]unix.Timespec // of access and of modification
}

func wanted(hdr *tar.Header) (attributes, error) {
	// The largest number means "unchanged" to the kernel.
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return attributes{}, invalid("Linux has no owner %d:%d", hdr.Uid, hdr.Gid)
	}
	modified := timespec(hdr.ModTime)
	accessed := modified
	if hdr.AccessTime.After(hdr.ModTime) {
		accessed = timespec(hdr.AccessTime)
	}
	return attributes{
		mode: uint32(hdr.Mode & 0o7777),
		uid:  hdr.Uid, gid: hdr.Gid,
		times: [2]unix.Timespec{accessed, modified},
	}, nil
}

// timespec is the time t, and 1970 for one that does not fit into 64 bits of
// nanoseconds since then.
func timespec(t time.Time) unix.Timespec {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// ownerOf reports whether the owner is to be changed.
func (a attributes) ownerOf(st *unix.Stat_t) bool {
	return int(st.Uid) != a.uid || int(st.Gid) != a.gid
}

// modeOf reports whether the mode is to be changed, once the owner is right. A
// change of owner takes the set-id bits away.
func (a attributes) modeOf(st *unix.Stat_t) bool {
	return st.Mode&0o7777 != a.mode || a.mode&0o6000 != 0 && a.ownerOf(st)
}

// settle gives a file its owner and mode by its name, and returns what it was
// before.
func (l *layer) settle(dirfd int, name string, want attributes) (st unix.Stat_t, err error) {
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, failed("fstatat", err)
	}
	if want.ownerOf(&st) {
		if err := unix.Fchownat(dirfd, name, want.uid, want.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return st, chownError(err, want)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && want.modeOf(&st) {
		// It follows links, but the name is none, and nobody else writes here.
		if err := unix.Fchmodat(dirfd, name, want.mode, 0); err != nil {
			return st, failed("fchmodat", err)
		}
	}
	return st, nil
}

// finishName gives a file all its attributes by its name, and counts the space
// that they take.
func (l *layer) finishName(dirfd int, name string, hdr *tar.Header, want attributes) error {
	st, err := l.settle(dirfd, name, want)
	if err != nil {
		return err
	}
	kind, had := st.Mode&unix.S_IFMT, st.Blocks
	if hdr.Typeflag != tar.TypeLink {
		had = 0
		l.facts.Inodes++
	}
	set, err := l.eachXattr(hdr, func(key, value string) error {
		err := unix.Lsetxattr(procPath(dirfd, name), key, []byte(value), 0)
		if errors.Is(err, unix.EPERM) && kind != unix.S_IFREG && isUserXattr(key) {
			return errNoXattr // Linux has these on files and directories only
		}
		return err
	})
	if err != nil {
		return err
	}
	if set.any {
		if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return failed("fstatat", err)
		}
	}
	l.facts.Size += (st.Blocks - had) * blockSize
	if set.mode { // so it is no symbolic link
		if err := unix.Fchmodat(dirfd, name, want.mode, 0); err != nil {
			return failed("fchmodat", err)
		}
	}
	if st.Atim == want.times[0] && st.Mtim == want.times[1] {
		return nil // a hard link
	}
	return failed("utimensat", unix.UtimesNanoAt(dirfd, name, want.times[:], unix.AT_SYMLINK_NOFOLLOW))
}

func chownError(err error, want attributes) error {
	if errors.Is(err, unix.EINVAL) {
		return unable("the user namespace has no owner %d:%d; map more users and groups into it", want.uid, want.gid)
	}
	return failed("chown", err)
}

// count adds a file that is no directory to the facts, or takes it away.
func (l *layer) count(st *unix.Stat_t, n int64) {
	l.facts.Size += n * st.Blocks * blockSize
	l.facts.Inodes += n
}

const blockSize = 512 // the unit of st_blocks
