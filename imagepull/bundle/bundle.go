// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	rootfsName = "rootfs"
	configName = "config.json"
)

// Bundler makes bundles whose writable layers lie in one directory.
type Bundler struct {
	scratch string
}

// New returns a Bundler. scratch is for the writable layers: it is made when
// first needed, and its file system must be one that overlayfs can write to
// (ext4, xfs, btrfs or tmpfs; not another overlay).
func New(scratch string) *Bundler { return &Bundler{scratch: scratch} }

// Create mounts layers (directories, from the bottom up) at <bundle>/rootfs and
// writes <bundle>/config.json. On an error nothing of it stays. Needs root. A
// bundle that is there already is AlreadyExists.
func (b *Bundler) Create(bundle string, layers []string, image ocispec.Image) (err error) {
	rootfs, scratch := filepath.Join(bundle, rootfsName), b.scratchOf(bundle)
	if _, err := os.Lstat(filepath.Join(bundle, configName)); err == nil {
		return fmt.Errorf("bundle %s has a %s: unmount it first, or choose another: %w", bundle, configName, errdefs.ErrAlreadyExists)
	}
	if err := os.MkdirAll(bundle, 0o750); err != nil {
		return failed("make bundle", err)
	}
	// Mkdir, not MkdirAll: an existing one may be another's mount.
	if err := os.Mkdir(rootfs, 0o750); errors.Is(err, os.ErrExist) {
		if err := emptyDir(rootfs); err != nil {
			return err
		}
	} else if err != nil {
		return failed("make rootfs", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Remove(bundle))
		}
	}()
	if err := os.RemoveAll(scratch); err != nil {
		return failed("remove an older writable layer", err)
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return failed("make writable layer", err)
		}
	}
	if len(layers) > 0 {
		if err := likeRoot(upper, layers[len(layers)-1]); err != nil {
			return failed("make writable layer", err)
		}
	}
	if err := mountOverlay(rootfs, layers, upper, work); err != nil {
		return failed("mount "+rootfs, err)
	}
	return writeConfig(bundle, rootfs, image)
}

// Remove undoes Create: it unmounts the rootfs and deletes the writable layer,
// the mount point and config.json. What is not there is no error. The bundle
// directory itself stays. A rootfs in use is FailedPrecondition.
func (b *Bundler) Remove(bundle string) error {
	rootfs := filepath.Join(bundle, rootfsName)
	switch err := unix.Unmount(rootfs, unix.UMOUNT_NOFOLLOW); {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR):
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: still in use: stop the container first: %w", rootfs, errdefs.ErrFailedPrecondition)
	default:
		return failed("unmount "+rootfs, err)
	}
	// Not RemoveAll: if it is a mount after all, nothing in it may be lost.
	err := unix.Rmdir(rootfs)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		err = nil
	}
	if err != nil {
		return failed("remove "+rootfs, err)
	}
	if err := os.Remove(filepath.Join(bundle, configName)); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return failed("remove config.json", err)
	}
	if err := os.RemoveAll(b.scratchOf(bundle)); err != nil {
		return failed("remove writable layer", err)
	}
	return nil
}

// Sweep deletes the writable layers of all bundles but these: those of bundles
// that went away with an earlier boot.
func (b *Bundler) Sweep(bundles []string) error {
	keep := make(map[string]bool, len(bundles))
	for _, bundle := range bundles {
		keep[b.scratchOf(bundle)] = true
	}
	entries, err := os.ReadDir(b.scratch)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return failed("sweep writable layers", err)
	}
	for _, e := range entries {
		path := filepath.Join(b.scratch, e.Name())
		if keep[path] {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return failed("remove writable layer", err)
		}
	}
	return nil
}

// scratchOf is where a bundle's writable layer is, found again by its path.
func (b *Bundler) scratchOf(bundle string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(bundle)))
	return filepath.Join(b.scratch, hex.EncodeToString(sum[:16]))
}

// likeRoot gives upper, which becomes the root of the mount, owner and mode of
// the topmost layer's.
func likeRoot(upper, top string) error {
	var st unix.Stat_t
	if err := unix.Stat(top, &st); err != nil {
		return &os.PathError{Op: "stat", Path: top, Err: err}
	}
	return errors.Join(os.Lchown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777))
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return failed("read "+dir, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: unmount it first, or choose another bundle: %w", dir, errdefs.ErrAlreadyExists)
	}
	return nil
}

func writeConfig(bundle, rootfs string, image ocispec.Image) error {
	spec, err := newSpec(rootfs, image)
	if err != nil {
		return err
	}
	body, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write config.json: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, configName), body, 0o600); err != nil {
		return failed("write config.json", err)
	}
	return nil
}

// failed gives an error of the file system its class.
func failed(what string, err error) error {
	class := errdefs.ErrInternal
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("bundle: %s: %w: make room or enlarge the file system: %w", what, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("bundle: %s: %w: mounting needs root: %w", what, err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("bundle: %s: %w: %w", what, err, class)
}
