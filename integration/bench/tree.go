// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// treeDigest is a digest of a layer's files: names, types, modes, owners,
// sizes, times, links, devices, opaque marks. Contents are left to the diff id.
// The root, and the time of whiteouts, are nothing that a layer says.
func treeDigest(root string) (string, error) {
	hash := sha256.New()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%q %o %d %d %d", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			fmt.Fprintf(hash, " %d %d %d", st.Size, st.Nlink, st.Mtim.Sec)
		case unix.S_IFDIR:
			opaque := make([]byte, 8)
			n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", opaque)
			if err != nil && !errors.Is(err, unix.ENODATA) {
				return err
			}
			fmt.Fprintf(hash, " %d %q", st.Mtim.Sec, opaque[:max(n, 0)])
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(hash, " %d %q", st.Mtim.Sec, target)
		}
		fmt.Fprintln(hash)
		return nil
	})
	return hexDigest(hash), err
}
