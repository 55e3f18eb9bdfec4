// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxValue is the longest value fsconfig(2) takes, without the NUL.
	maxValue = 255
	// maxOptions is the longest option string mount(2) takes: one page.
	maxOptions = 4095
	// maxShown is how long the names of all layers may be as /proc/self/mountinfo
	// shows them. Common programs, runc among them, fail for every mount of the
	// machine where one line is longer than 64 KiB.
	maxShown = 32 << 10
	// maxStack is how many lower layers overlayfs takes.
	maxStack = 500
)

// An overlay is mounted, but nobody sees it before attach.
type overlay struct {
	root   *os.File // its root directory
	attach func() error
}

// close ends an overlay that was not attached; an attached one stays.
func (o *overlay) close() { _ = o.root.Close() }

// mountOverlay makes an overlay of layers, bottom up, for target. source is the
// name under which mountinfo has it. The caller closes it. Before Linux 6.7 it
// is at target from the beginning.
func mountOverlay(source, target string, layers []string, upper, work string) (_ *overlay, err error) {
	switch {
	case len(layers) == 0:
		return nil, fmt.Errorf("the image has no layers: %w", errdefs.ErrInvalidArgument)
	case len(layers) > maxStack:
		return nil, fmt.Errorf("the image has %d layers, overlayfs takes %d: squash some: %w", len(layers), maxStack, errdefs.ErrInvalidArgument)
	}
	lowers := slices.Clone(layers)
	slices.Reverse(lowers) // overlayfs wants the top first
	if lowers, err = visible(lowers); err != nil {
		return nil, err
	}
	o, err := mountNew(source, target, lowers, upper, work)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// No fsopen, or an overlayfs without lowerdir+ (before Linux 6.7).
		old, oldErr := mountOld(source, target, lowers, upper, work)
		if oldErr != nil {
			return nil, errors.Join(oldErr, err)
		}
		return old, nil
	}
	return o, err
}

// visible are the layers, top first, down to the first whose root directory is
// opaque. Overlayfs itself does not look at a root's mark and would show what
// that layer hides.
func visible(lowers []string) ([]string, error) {
	for i, dir := range lowers {
		var value [2]byte
		n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE):
		case err != nil:
			return nil, &os.PathError{Op: "lgetxattr", Path: dir, Err: err}
		case string(value[:n]) == "y":
			return lowers[:i+1], nil
		}
	}
	return lowers, nil
}

// paths names directories by their path, or by an open file descriptor where
// that is longer than longest bytes or has a character in special.
type paths struct {
	longest int
	special string
	open    []*os.File
}

func (p *paths) name(path string) (string, error) {
	if len(path) <= p.longest && !strings.ContainsAny(path, p.special) {
		return path, nil
	}
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	p.open = append(p.open, f)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

func (p *paths) close() {
	for _, f := range p.open {
		_ = f.Close()
	}
}

// mountNew uses fsopen(2), one call for each layer, which sets no limit on
// their names together.
func mountNew(source, target string, lowers []string, upper, work string) (*overlay, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	fs := os.NewFile(uintptr(fd), "overlay")
	defer func() { _ = fs.Close() }()
	p := &paths{longest: maxValue}
	if length(lowers) > maxShown {
		p.longest = 0 // all by descriptor
	}
	defer p.close()
	set := func(key, path string) error {
		name, err := p.name(path)
		if err != nil {
			return err
		}
		return os.NewSyscallError("fsconfig "+key, unix.FsconfigSetString(fd, key, name))
	}
	if err := unix.FsconfigSetString(fd, "source", source); err != nil {
		return nil, os.NewSyscallError("fsconfig source", err)
	}
	for _, lower := range lowers {
		if err := set("lowerdir+", lower); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(set("upperdir", upper), set("workdir", work)); err != nil {
		return nil, err
	}
	// The writable layer does not outlive the machine, so nothing of it is worth
	// a flush; without this to unmount it flushes the whole file system below.
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return nil, os.NewSyscallError("fsconfig volatile", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("fsconfig create: %w%s", err, kernelText(fd))
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	attach := func() error {
		return os.NewSyscallError("move_mount", unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
	return &overlay{root: os.NewFile(uintptr(mfd), target), attach: attach}, nil
}

func length(names []string) (n int) {
	for _, name := range names {
		n += len(name)
	}
	return n
}

// kernelText is what the kernel logged about a mount that failed.
func kernelText(fd int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(fd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

// mountOld uses mount(2), where all names share one page.
func mountOld(source, target string, lowers []string, upper, work string) (*overlay, error) {
	options := func(longest int) (string, *paths, error) {
		p := &paths{longest: longest, special: ":,\\"}
		names := make([]string, len(lowers))
		for i, lower := range lowers {
			name, err := p.name(lower)
			if err != nil {
				return "", p, err
			}
			names[i] = name
		}
		u, err1 := p.name(upper)
		w, err2 := p.name(work)
		return "lowerdir=" + strings.Join(names, ":") + ",upperdir=" + u + ",workdir=" + w, p, errors.Join(err1, err2)
	}
	data, p, err := options(maxOptions)
	if err == nil && len(data) > maxOptions {
		p.close()
		data, p, err = options(0) // all by descriptor
	}
	defer p.close()
	if err != nil {
		return nil, err
	}
	if len(data) > maxOptions {
		return nil, fmt.Errorf("the names of %d layers do not fit into one mount call: use Linux 6.7 or later: %w", len(lowers), errdefs.ErrInvalidArgument)
	}
	if err := unix.Mount(source, target, "overlay", 0, data); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	root, err := os.OpenFile(target, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Join(err, unmount(target))
	}
	return &overlay{root: root, attach: func() error { return nil }}, nil
}
