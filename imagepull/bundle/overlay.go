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
	// maxStack is how many lower layers overlayfs takes.
	maxStack = 500
)

// mountOverlay mounts layers, bottom up, at target.
func mountOverlay(target string, layers []string, upper, work string) error {
	switch {
	case len(layers) == 0:
		return fmt.Errorf("the image has no layers: %w", errdefs.ErrInvalidArgument)
	case len(layers) > maxStack:
		return fmt.Errorf("the image has %d layers, overlayfs takes %d: squash some: %w", len(layers), maxStack, errdefs.ErrInvalidArgument)
	}
	lowers := slices.Clone(layers)
	slices.Reverse(lowers) // overlayfs wants the top first
	err := mountNew(target, lowers, upper, work)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// No fsopen, or an overlayfs without lowerdir+ (before Linux 6.7).
		if oldErr := mountOld(target, lowers, upper, work); oldErr != nil {
			return errors.Join(oldErr, err)
		}
		return nil
	}
	return err
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
func mountNew(target string, lowers []string, upper, work string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	fs := os.NewFile(uintptr(fd), "overlay")
	defer func() { _ = fs.Close() }()
	p := &paths{longest: maxValue}
	defer p.close()
	set := func(key, path string) error {
		name, err := p.name(path)
		if err != nil {
			return err
		}
		return os.NewSyscallError("fsconfig "+key, unix.FsconfigSetString(fd, key, name))
	}
	for _, lower := range lowers {
		if err := set("lowerdir+", lower); err != nil {
			return err
		}
	}
	if err := errors.Join(set("upperdir", upper), set("workdir", work)); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("fsconfig create: %w%s", err, kernelText(fd))
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	m := os.NewFile(uintptr(mfd), "overlay mount")
	defer func() { _ = m.Close() }()
	return os.NewSyscallError("move_mount", unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
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
func mountOld(target string, lowers []string, upper, work string) error {
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
		return err
	}
	if len(data) > maxOptions {
		return fmt.Errorf("the names of %d layers do not fit into one mount call: use Linux 6.7 or later: %w", len(lowers), errdefs.ErrInvalidArgument)
	}
	return os.NewSyscallError("mount", unix.Mount("overlay", target, "overlay", 0, data))
}
