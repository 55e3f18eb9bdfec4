// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	maxAccounts = 4 << 20 // bytes of /etc/passwd or /etc/group
	maxID       = 1<<31 - 1
)

// resolveUser turns an image's User (user, uid, user:group, ...) into ids, by
// the passwd and group files in the rootfs. A number needs no entry there, a
// name does; supplementary groups are those that list the user, unless a group
// is named.
func resolveUser(rootfs, user string) (specs.User, error) {
	passwd, err := readInside(rootfs, "etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := readInside(rootfs, "etc/group")
	if err != nil {
		return specs.User{}, err
	}
	return lookupUser(user, passwd, group)
}

func lookupUser(user, passwd, group string) (specs.User, error) {
	name, groupName, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	var u specs.User
	id, isNumber := parseID(name)
	account := find(passwd, 4, func(f []string) bool {
		n, ok := parseID(f[2])
		return f[0] == name || isNumber && ok && n == id
	})
	switch {
	case account != nil:
		uid, ok1 := parseID(account[2])
		gid, ok2 := parseID(account[3])
		if !ok1 || !ok2 {
			return u, fmt.Errorf("user %.100q: bad entry in the image's /etc/passwd: %w", user, errdefs.ErrInvalidArgument)
		}
		u.UID, u.GID = uid, gid
	case isNumber:
		u.UID = id
	default:
		return u, fmt.Errorf("user %.100q is not in the image's /etc/passwd: set USER to a number or to a name that is: %w", user, errdefs.ErrInvalidArgument)
	}
	if hasGroup && groupName != "" {
		gid, err := lookupGroup(groupName, group)
		u.GID = gid
		return u, err
	}
	if account != nil {
		u.AdditionalGids = memberships(account[0], group, u.GID)
	}
	return u, nil
}

func lookupGroup(name, group string) (uint32, error) {
	id, isNumber := parseID(name)
	if isNumber {
		return id, nil
	}
	entry := find(group, 3, func(f []string) bool { return f[0] == name })
	if entry != nil {
		if id, ok := parseID(entry[2]); ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("group %.100q is not in the image's /etc/group: set USER with a number or a name that is: %w", name, errdefs.ErrInvalidArgument)
}

// memberships are the groups that list the user, without the primary one.
func memberships(user, group string, primary uint32) []uint32 {
	var gids []uint32
	find(group, 4, func(f []string) bool {
		if id, ok := parseID(f[2]); ok && id != primary && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, id)
		}
		return false
	})
	slices.Sort(gids)
	return slices.Compact(gids)
}

// find returns the fields of the first line that has at least n and matches.
func find(file string, n int, matches func(fields []string) bool) []string {
	for line := range strings.Lines(file) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) >= n && fields[0] != "" && matches(fields) {
			return fields
		}
	}
	return nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// readInside reads a regular file of the rootfs, where links lead nowhere else.
// A missing one is empty.
func readInside(rootfs, name string) (string, error) {
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", failed("open rootfs", err)
	}
	defer func() { _ = root.Close() }()
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read /%s of the image: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", failed("read /"+name, err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("/%s of the image is no regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return "", failed("read /"+name, err)
	}
	if len(b) > maxAccounts {
		return "", fmt.Errorf("/%s of the image is larger than %d MiB: %w", name, maxAccounts>>20, errdefs.ErrInvalidArgument)
	}
	return string(b), nil
}
