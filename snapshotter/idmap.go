// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// mappedRoot returns the host ids of root in a user namespace, from the values
// of containerd's labels uidmapping and gidmapping: "container:host:size",
// comma-separated. An empty value maps root to itself.
func mappedRoot(uids, gids string) (uid, gid int, err error) {
	if uid, err = hostID(uids); err != nil {
		return -1, -1, err
	}
	if gid, err = hostID(gids); err != nil {
		return -1, -1, err
	}
	return uid, gid, nil
}

func hostID(mappings string) (int, error) {
	if mappings == "" {
		return 0, nil
	}
	for m := range strings.SplitSeq(mappings, ",") {
		ids, err := parseMapping(m)
		if err != nil {
			return -1, err
		}
		if ids[0] == 0 && ids[2] > 0 {
			return int(ids[1]), nil
		}
	}
	return -1, fmt.Errorf("id mapping %q does not map root: %w", mappings, errdefs.ErrInvalidArgument)
}

func parseMapping(m string) (ids [3]uint32, err error) {
	parts := strings.Split(m, ":")
	if len(parts) != len(ids) {
		return ids, fmt.Errorf("id mapping %q is not container:host:size: %w", m, errdefs.ErrInvalidArgument)
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return ids, fmt.Errorf("id mapping %q is not container:host:size: %w", m, errdefs.ErrInvalidArgument)
		}
		ids[i] = uint32(n)
	}
	return ids, nil
}
