// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// xattrPrefix is what the PAX record of an extended attribute begins with.
	xattrPrefix = "SCHILY.xattr."

	opaqueXattr     = "trusted.overlay.opaque"
	accessListXattr = "system.posix_acl_access"
)

// errNoXattr is for an attribute that nothing on Linux could ever read.
var errNoXattr = errors.New("no such attribute on Linux")

// eachXattr sets the extended attributes of an entry.
//
// Those of the namespace trusted belong to the machine, overlayfs among others,
// and are no image's to set; those of an unknown namespace, which other
// operating systems have, mean nothing here. They are left out, and the log
// says so. Any other that cannot be set is an error: an image that needs its
// capabilities or access lists must not run without them.
//
// Access lists as text, and what else some tools write in records of their own,
// are left out in the same way.
func (l *layer) eachXattr(hdr *tar.Header, set func(key, value string) error) (was changed, err error) {
	if len(hdr.PAXRecords) == 0 {
		return was, nil
	}
	var keys []string
	for record := range hdr.PAXRecords {
		if key, found := strings.CutPrefix(record, xattrPrefix); found {
			keys = append(keys, key)
		} else if isForeignRecord(hdr, record) {
			l.ignore(hdr, record)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !isImageXattr(key) {
			l.ignore(hdr, key)
			continue
		}
		value := hdr.PAXRecords[xattrPrefix+key]
		switch err := set(key, value); {
		case errors.Is(err, errNoXattr):
			l.ignore(hdr, key)
		case err != nil:
			return was, l.xattrError(key, value, err)
		default:
			was.any, was.mode = true, was.mode || key == accessListXattr
		}
	}
	return was, nil
}

// changed says what became of a file when it got its extended attributes.
type changed struct {
	any  bool // it has some, which may take space
	mode bool // there is an access list, so the mode is to be set again
}

// isForeignRecord reports whether a PAX record says something about a file that
// has no place in a layer.
func isForeignRecord(hdr *tar.Header, record string) bool {
	if key, found := strings.CutPrefix(record, "LIBARCHIVE.xattr."); found {
		_, twice := hdr.PAXRecords[xattrPrefix+key]
		return !twice
	}
	return strings.HasPrefix(record, "SCHILY.acl.") || record == "SCHILY.fflags" || strings.HasPrefix(record, "RHT.security.")
}

// isImageXattr reports whether an attribute is one that images have.
func isImageXattr(key string) bool {
	return isUserXattr(key) || strings.HasPrefix(key, "security.") || strings.HasPrefix(key, "system.")
}

func isUserXattr(key string) bool { return strings.HasPrefix(key, "user.") }

// ignore notes an attribute that is left out.
func (l *layer) ignore(hdr *tar.Header, key string) {
	if l.ignored++; l.ignored == 1 {
		l.firstIgnored = fmt.Sprintf("%s of %s", short(key), short(hdr.Name))
	}
}

// reportIgnored writes one line about all of them, so that no layer fills a log.
func (l *layer) reportIgnored(ctx context.Context) {
	if l.ignored > 0 {
		l.opts.Logger.WarnContext(ctx, "extended attributes that are not an image's to set are left out",
			"count", l.ignored, "first", l.firstIgnored)
	}
}

// xattrError explains why an attribute could not be set.
func (l *layer) xattrError(key, value string, err error) error {
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return unable("the file system cannot hold its extended attribute %s; use ext4, xfs, btrfs or a tmpfs of Linux 6.6 for the image store", short(key))
	case errors.Is(err, unix.ENOSPC) && l.hasSpace():
		return unable("the file system has no room for the %d bytes of its extended attribute %s on one file; use xfs or btrfs, or ext4 with larger inodes, for the image store", len(value), short(key))
	}
	return fmt.Errorf("set extended attribute %s: %w", short(key), err)
}

// hasSpace reports whether the file system is not full. Some say that it is
// where only an attribute is too large for a file.
func (l *layer) hasSpace() bool {
	var st unix.Statfs_t
	err := unix.Fstatfs(l.root.fd, &st)
	return err == nil && st.Bavail > 16
}

// procPath is a path of a name in an open directory, for the calls that take no
// descriptor.
func procPath(dirfd int, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)
}
