// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// sourcePrefix begins the source of each mount of a Bundler; the manifest's
// digest follows. It outlives the process, and goes with the mount.
const sourcePrefix = "coffer-"

// Mounted tells of which manifest the rootfs is that Create mounted for a bundle,
// in this process or an earlier one. Where nothing of it is mounted, the error is
// NotFound.
func (b *Bundler) Mounted(bundle string) (digest.Digest, error) {
	m, err := mountAt(filepath.Join(bundle, rootfsName))
	if err != nil {
		return "", err
	}
	if !m.ours() {
		return "", fmt.Errorf("bundle %s is not mounted: %w", bundle, errdefs.ErrNotFound)
	}
	return digest.Digest(strings.TrimPrefix(m.source, sourcePrefix)), nil
}

// Complete is as Mounted, and NotFound too where config.json is missing.
func (b *Bundler) Complete(bundle string) (digest.Digest, error) {
	manifest, err := b.Mounted(bundle)
	if err != nil {
		return "", err
	}
	switch _, err := os.Lstat(filepath.Join(bundle, configName)); {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("bundle %s has no %s: %w", bundle, configName, errdefs.ErrNotFound)
	case err != nil:
		return "", failed("look for "+configName, err)
	}
	return manifest, nil
}

// A mount is what is mounted at a path.
type mount struct {
	present        bool
	fstype, source string
}

func (m mount) ours() bool {
	return m.present && m.fstype == "overlay" && strings.HasPrefix(m.source, sourcePrefix)
}

// mountAt returns what is mounted at exactly this path; nothing is no error.
func mountAt(path string) (mount, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return mount{}, nil
	}
	if err != nil {
		return mount{}, failed("look for a mount at "+path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 || st.Mask&unix.STATX_MNT_ID == 0 {
		return mount{}, fmt.Errorf("bundle: the kernel does not tell mounts: use Linux 5.8 or later: %w", errdefs.ErrNotImplemented)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return mount{}, nil
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mount{}, failed("look for a mount at "+path, err)
	}
	return parseMount(string(table), st.Mnt_id), nil
}

// parseMount finds a mount in the form of /proc/self/mountinfo.
func parseMount(table string, id uint64) mount {
	m := mount{present: true}
	prefix := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		_, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(after); len(fields) >= 2 {
			m.fstype, m.source = fields[0], fields[1]
		}
		break
	}
	return m
}

// unmount takes away what a Bundler mounted, and no other mount.
func unmount(rootfs string) error {
	for {
		m, err := mountAt(rootfs)
		if err != nil || !m.present {
			return err
		}
		if !m.ours() {
			return fmt.Errorf("unmount %s: it is a mount of somebody else: unmount it first: %w", rootfs, errdefs.ErrFailedPrecondition)
		}
		switch err := unix.Unmount(rootfs, unix.UMOUNT_NOFOLLOW); {
		case err == nil, errors.Is(err, unix.EINVAL): // the latter: another was faster
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: still in use: stop the container first: %w", rootfs, errdefs.ErrFailedPrecondition)
		default:
			return failed("unmount "+rootfs, err)
		}
	}
}
