// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// file writes a regular file. It is made with the mode it is to have, so that
// for most files owner and mode are right at once.
func (l *layer) file(d *dir, name string, hdr *tar.Header, content io.Reader) (err error) {
	want, err := wanted(hdr)
	if err != nil {
		return err
	}
	var fd int
	err = l.fresh(d, name, "openat", func(dirfd int) error {
		return again(func() (err error) {
			fd, err = unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, want.mode&0o777)
			return err
		})
	})
	if err != nil {
		return err
	}
	defer func() {
		// NFS and the like tell of a full disk here.
		if closeErr := unix.Close(fd); err == nil && !errors.Is(closeErr, unix.EINTR) {
			err = failed("close", closeErr)
		}
	}()
	if isSparse(hdr) {
		err = l.writeSparse(fd, content, hdr.Size)
	} else {
		err = l.write(fd, content, hdr.Size)
	}
	if err != nil {
		return err
	}
	return l.finishFile(fd, hdr, want)
}

// finishFile gives a file that is written its attributes, and counts it.
func (l *layer) finishFile(fd int, hdr *tar.Header, want attributes) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("fstat", err)
	}
	if want.ownerOf(&st) {
		if err := unix.Fchown(fd, want.uid, want.gid); err != nil {
			return chownError(err, want)
		}
	}
	// After the owner, whose change takes a capability away.
	set, err := l.eachXattr(hdr, func(key, value string) error {
		return unix.Fsetxattr(fd, key, []byte(value), 0)
	})
	if err != nil {
		return err
	}
	if set.mode || want.modeOf(&st) {
		if err := unix.Fchmod(fd, want.mode); err != nil {
			return failed("fchmod", err)
		}
	}
	if err := unix.UtimesNanoAt(fd, "", want.times[:], unix.AT_EMPTY_PATH); err != nil {
		return failed("utimensat", err)
	}
	if set.any {
		if err := unix.Fstat(fd, &st); err != nil {
			return failed("fstat", err)
		}
	}
	l.count(&st, 1)
	return nil
}

// write copies the content of a file.
func (l *layer) write(fd int, content io.Reader, size int64) error {
	for size > 0 {
		chunk := l.buf[:min(size, bufferSize)]
		n, err := io.ReadFull(content, chunk)
		if err != nil {
			return err
		}
		if err := writeAll(fd, chunk[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == nil && n == 0: // no file system should
			return failed("write", unix.EIO)
		case err != nil && !errors.Is(err, unix.EINTR):
			return failed("write", err)
		}
		b = b[max(n, 0):]
	}
	return nil
}

// isSparse reports whether an entry has holes: GNU's own format has a type for
// it, and its PAX formats have records.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// holeSize is the least that is left out of a sparse file: a page or block.
const holeSize = 4096

// writeSparse copies the content of a file without writing blocks of zeros.
func (l *layer) writeSparse(fd int, content io.Reader, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return failed("ftruncate", err)
	}
	for offset := int64(0); offset < size; {
		// Holes come from no reader that would notice.
		if err := l.src.ctx.Err(); err != nil {
			return err
		}
		chunk := l.buf[:min(size-offset, bufferSize)]
		if err := l.unfold(len(chunk)); err != nil {
			return err
		}
		if _, err := io.ReadFull(content, chunk); err != nil {
			return err
		}
		for len(chunk) > 0 {
			n := dataLength(chunk)
			if n > 0 {
				if _, err := unix.Seek(fd, offset, io.SeekStart); err != nil {
					return failed("lseek", err)
				}
				if err := writeAll(fd, chunk[:n]); err != nil {
					return err
				}
			} else {
				n = min(holeSize, len(chunk))
			}
			offset, chunk = offset+int64(n), chunk[n:]
		}
	}
	return nil
}

// dataLength is how much of b comes before a block of zeros.
func dataLength(b []byte) int {
	for n := 0; n < len(b); n += holeSize {
		if block := b[n:min(n+holeSize, len(b))]; isZero(block) {
			return n
		}
	}
	return len(b)
}

// isZero reports whether b, which is not empty, is all zero.
func isZero(b []byte) bool {
	return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}
