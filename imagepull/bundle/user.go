// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	maxAccounts = 4 << 20 // bytes of /etc/passwd or /etc/group
	maxID       = 1<<31 - 1
)

// resolveUser turns an image's User (user, uid, user:group, ...) into ids, by
// the passwd and group files in the rootfs, as containerd does. A number needs no
// entry there, a name does. The additional groups are the primary one and those
// that list the user.
func (r rootDir) resolveUser(user string) (specs.User, error) {
	passwd, err := r.read("etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := r.read("etc/group")
	if err != nil {
		return specs.User{}, err
	}
	return lookupUser(user, passwd, group)
}

func lookupUser(user, passwd, group string) (specs.User, error) {
	if user == "" {
		return specs.User{AdditionalGids: memberships("root", group, 0)}, nil
	}
	name, groupName, _ := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	var u specs.User
	id, isNumber := parseID(name)
	account := find(passwd, 4, func(f []string) bool {
		n, ok := parseID(f[2])
		return !isNumber && f[0] == name || isNumber && ok && n == id
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
	if groupName != "" {
		gid, err := lookupGroup(groupName, group)
		if err != nil {
			return specs.User{}, err
		}
		u.GID = gid
	}
	member := ""
	if account != nil {
		member = account[0]
	}
	u.AdditionalGids = memberships(member, group, u.GID)
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

// memberships are the primary group and, sorted, those that list the user.
func memberships(user, group string, primary uint32) []uint32 {
	var gids []uint32
	find(group, 4, func(f []string) bool {
		id, ok := parseID(f[2])
		if ok && id != primary && user != "" && f[0] != user && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, id)
		}
		return false
	})
	slices.Sort(gids)
	return append([]uint32{primary}, slices.Compact(gids)...)
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
