// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

func (l *layer) symlink(d *dir, name string, hdr *tar.Header) error {
	return l.special(d, name, hdr, "symlinkat", func(fd int, _ attributes) error {
		return unix.Symlinkat(hdr.Linkname, fd, name)
	})
}

// node makes a device or a fifo.
func (l *layer) node(d *dir, name string, hdr *tar.Header) error {
	kind, device := uint32(unix.S_IFIFO), uint64(0)
	if hdr.Typeflag != tar.TypeFifo {
		// What Linux can tell apart; it drops the bits above in silence.
		const majors, minors = 1 << 12, 1 << 20
		if hdr.Devmajor < 0 || hdr.Devmajor >= majors || hdr.Devminor < 0 || hdr.Devminor >= minors {
			return invalid("Linux has no device number %d:%d", hdr.Devmajor, hdr.Devminor)
		}
		device = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
		kind = unix.S_IFBLK
		if hdr.Typeflag == tar.TypeChar {
			kind = unix.S_IFCHR
		}
	}
	return l.special(d, name, hdr, "mknodat", func(fd int, want attributes) error {
		return unix.Mknodat(fd, name, kind|want.mode, int(device))
	})
}

// special makes a file without content.
func (l *layer) special(d *dir, name string, hdr *tar.Header, call string, make func(fd int, want attributes) error) error {
	want, err := wanted(hdr)
	if err != nil {
		return err
	}
	dirfd := -1
	err = l.fresh(d, name, call, func(fd int) error {
		dirfd = fd
		return make(fd, want)
	})
	if err != nil {
		return err
	}
	return l.finishName(dirfd, name, hdr, want)
}

// hardLink gives a file of this layer one more name. As the attributes of an
// entry are the file's, they replace what it had.
func (l *layer) hardLink(d *dir, name string, hdr *tar.Header) error {
	want, err := wanted(hdr)
	if err != nil {
		return err
	}
	dirfd := -1
	err = l.fresh(d, name, "linkat", func(int) error {
		// Again after what was there is removed: the target may have been in it.
		to, target, err := l.linkTarget(hdr.Linkname)
		if err != nil {
			return err
		}
		targetfd, err := l.open.descriptor(to)
		if err != nil {
			return err
		}
		// Finding the target may have closed the one that came with the call.
		if dirfd, err = l.open.descriptor(d); err != nil {
			return err
		}
		return unix.Linkat(targetfd, target, dirfd, name, 0)
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return invalid("it is a hard link to %s, which is not in the layer at this point", short(hdr.Linkname))
	case errors.Is(err, unix.EMLINK):
		return unable("it is a hard link, and the file system allows one file no more of them: use xfs or tmpfs for the image store")
	case errors.Is(err, unix.EPERM):
		return unable("it is a hard link, and the file system refuses to make one: use ext4, xfs, btrfs or tmpfs for the image store")
	case err != nil:
		return fmt.Errorf("hard link to %s: %w", short(hdr.Linkname), err)
	}
	return l.finishName(dirfd, name, hdr, want)
}

// linkTarget returns the file that a hard link names, as a name in a directory.
// A symbolic link there is meant itself.
func (l *layer) linkTarget(link string) (*dir, string, error) {
	above, name := path.Split(link)
	d, missing, err := l.resolve(above)
	if err != nil {
		return nil, "", err
	}
	if name == "" && len(missing) == 1 { // a file with a slash behind its name
		name, missing = missing[0], nil
	}
	if len(missing) > 0 {
		return nil, "", unix.ENOENT
	}
	_, isDir := d.dirs[name]
	if isDir || name == "" || name == "." || name == ".." {
		return nil, "", invalid("it is a hard link to %s, a directory", short(link))
	}
	if _, hidden := d.hidden[name]; hidden {
		return nil, "", unix.ENOENT
	}
	return d, name, nil
}
