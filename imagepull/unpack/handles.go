// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack

import (
	"strings"

	"golang.org/x/sys/unix"
)

// maxHandles is how many directories are open at a time, the root aside. Tar
// streams mostly stay in one directory and come back to those above it.
const maxHandles = 64

// handles keeps the directories open that were used last. A descriptor is good
// until the next maxHandles-1 directories have been asked for, or its directory
// is forgotten; nobody keeps one longer than for one entry.
type handles struct {
	newest, oldest *dir
	count          int
}

// descriptor returns one of a directory. It is opened relative to the nearest
// directory above that is open, and through no symbolic link.
func (h *handles) descriptor(d *dir) (int, error) {
	if d.fd >= 0 {
		if d.parent != nil && h.newest != d {
			h.unlink(d)
			h.push(d)
		}
		return d.fd, nil
	}
	above := d.parent
	for above.fd < 0 {
		above = above.parent
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	var fd int
	err := again(func() (err error) {
		fd, err = unix.Openat2(above.fd, d.pathFrom(above), &how)
		return err
	})
	if err != nil {
		return -1, failed("openat2", err)
	}
	d.fd = fd
	h.push(d)
	if h.count++; h.count > maxHandles {
		h.forget(h.oldest)
	}
	return fd, nil
}

// forget closes the descriptor of a directory, if there is one.
func (h *handles) forget(d *dir) {
	if d.fd < 0 {
		return
	}
	h.unlink(d)
	h.count--
	_ = unix.Close(d.fd) // nothing was written through it
	d.fd = -1
}

func (h *handles) close() {
	for h.oldest != nil {
		h.forget(h.oldest)
	}
}

func (h *handles) push(d *dir) {
	d.older = h.newest
	if h.newest != nil {
		h.newest.newer = d
	} else {
		h.oldest = d
	}
	h.newest = d
}

func (h *handles) unlink(d *dir) {
	if d.newer != nil {
		d.newer.older = d.older
	} else {
		h.newest = d.older
	}
	if d.older != nil {
		d.older.newer = d.newer
	} else {
		h.oldest = d.newer
	}
	d.newer, d.older = nil, nil
}

// pathFrom is the path of d relative to a directory above it.
func (d *dir) pathFrom(above *dir) string {
	if d.parent == above {
		return d.name
	}
	var parts []string
	for ; d != above; d = d.parent {
		parts = append(parts, d.name)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// again repeats a system call that a signal has interrupted.
func again(call func() error) error {
	for {
		err := call()
		if err != unix.EINTR { //nolint:errorlint // straight from the system call
			return err
		}
	}
}
