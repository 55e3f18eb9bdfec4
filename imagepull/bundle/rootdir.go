// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A rootDir is an open rootfs. Its links, absolute ones and .. included, lead
// nowhere else.
type rootDir struct{ *os.File }

// open opens a directory of the rootfs, or with O_PATH any file; nil if there is
// none.
func (r rootDir) open(name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(r.Fd()), name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil //nolint:nilnil // a missing file is an ordinary answer
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("read /%.200s of the image: %w: %w", name, err, errdefs.ErrInvalidArgument)
	default:
		return nil, failed(fmt.Sprintf("read /%.200s of the image", name), err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// read reads a regular file of bounded size. A missing one is empty.
func (r rootDir) read(name string) (string, error) {
	found, err := r.open(name, unix.O_PATH)
	if found == nil {
		return "", err
	}
	defer func() { _ = found.Close() }()
	info, err := found.Stat()
	if err != nil {
		return "", failed("read /"+name, err)
	}
	// Only now is it opened in earnest: with a device that does something.
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("/%s of the image is no regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", found.Fd()))
	if err != nil {
		return "", failed("read /"+name, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return "", failed("read /"+name, err)
	}
	if len(b) > maxAccounts {
		return "", fmt.Errorf("/%s of the image is larger than %d MiB: %w", name, maxAccounts>>20, errdefs.ErrInvalidArgument)
	}
	return string(b), nil
}

// volumes makes a mount in memory for each volume of the image: with the owner,
// the mode and, where the runtime can, the content of the directory that the
// image has there. A volume in place of a file system that the runtime mounts,
// or of everything, is left out: it would undo how that one is mounted.
func (r rootDir) volumes(volumes map[string]struct{}) ([]specs.Mount, error) {
	names := make([]string, 0, len(volumes))
	for name := range volumes {
		name = path.Clean("/" + name)
		top, _, _ := strings.Cut(name[1:], "/")
		if !slices.Contains([]string{"", "dev", "proc", "sys"}, top) {
			names = append(names, name)
		}
	}
	slices.Sort(names) // what is above comes first
	var mounts []specs.Mount
	for _, name := range slices.Compact(names) {
		options, err := r.volumeOptions(name)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, specs.Mount{Destination: name, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	return mounts, nil
}

func (r rootDir) volumeOptions(name string) ([]string, error) {
	options := []string{"nosuid", "noexec", "nodev", "relatime", "rw"}
	f, err := r.open(strings.TrimPrefix(name, "/"), unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return append(options, "mode=0755"), nil
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, failed("look at volume "+name, err)
	}
	options = append(options, fmt.Sprintf("mode=%04o", st.Mode&0o7777), fmt.Sprintf("uid=%d", st.Uid), fmt.Sprintf("gid=%d", st.Gid))
	switch _, err := f.Readdirnames(1); {
	case err == nil:
		options = append(options, "tmpcopyup")
	case !errors.Is(err, io.EOF):
		return nil, failed("look at volume "+name, err)
	}
	return options, nil
}
