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
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	rootfsName = "rootfs"
	configName = "config.json"
	draftName  = "config.json.draft" // becomes configName when it is whole
)

// Bundler makes bundles whose writable layers lie in one directory.
type Bundler struct {
	scratch string
}

// New returns a Bundler. scratch is for the writable layers: it is made when
// first needed, and its file system must be one that overlayfs can write to
// (ext4, xfs, btrfs or tmpfs; not another overlay).
func New(scratch string) *Bundler { return &Bundler{scratch: scratch} }

// Vacant reports, as an AlreadyExists error, what Create would find in its way.
func (b *Bundler) Vacant(bundle string) error {
	switch _, err := os.Lstat(filepath.Join(bundle, configName)); {
	case err == nil:
		return fmt.Errorf("bundle %s has a %s: remove it first, or choose another: %w", bundle, configName, errdefs.ErrAlreadyExists)
	case !errors.Is(err, os.ErrNotExist):
		return failed("look for "+configName, err)
	}
	return unused(filepath.Join(bundle, rootfsName))
}

// Create writes <bundle>/config.json and mounts layers (directories, from the
// bottom up) at <bundle>/rootfs, which comes last. On an error nothing of it
// stays, but the bundle directory. Needs root. A bundle that is there already is
// AlreadyExists. manifest is what Mounted tells of it later. told is what hosts are
// told of the image's users: an image with files that say otherwise is
// FailedPrecondition.
func (b *Bundler) Create(bundle string, manifest digest.Digest, layers []string, image ocispec.Image, told Accounts) (err error) {
	rootfs, scratch := filepath.Join(bundle, rootfsName), b.scratchOf(bundle)
	if err := b.Vacant(bundle); err != nil {
		return err
	}
	if err := os.MkdirAll(rootfs, 0o750); err != nil {
		return failed("make bundle", err)
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
	o, err := mountOverlay(sourcePrefix+manifest.String(), rootfs, layers, upper, work)
	if err != nil {
		return failed("mount "+rootfs, err)
	}
	defer o.close()
	if err := told.agree(rootDir{o.root}); err != nil {
		return err
	}
	if err := writeConfig(bundle, rootDir{o.root}, image); err != nil {
		return err
	}
	if err := o.attach(); err != nil {
		return failed("mount "+rootfs, err)
	}
	return nil
}

// Remove undoes Create, in whatever process that was, and however far it came:
// it unmounts the rootfs and deletes the writable layer, the mount point and
// config.json. What is not there is no error. The bundle directory itself stays.
// A rootfs in use, or one that is another's mount, is FailedPrecondition, and
// everything stays as it was.
func (b *Bundler) Remove(bundle string) error {
	rootfs := filepath.Join(bundle, rootfsName)
	if err := unmount(rootfs); err != nil {
		return err
	}
	// Not RemoveAll: if it is a mount after all, nothing in it may be lost.
	err := unix.Rmdir(rootfs)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		err = nil
	}
	if err != nil {
		return failed("remove "+rootfs, err)
	}
	for _, name := range []string{configName, draftName} {
		if err := os.Remove(filepath.Join(bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return failed("remove "+name, err)
		}
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

// unused refuses a mount point that has files, or is one already, or a link:
// what is mounted behind one would not be found again by its path.
func unused(dir string) error {
	if info, err := os.Lstat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is no directory: remove it first, or choose another bundle: %w", dir, errdefs.ErrAlreadyExists)
	}
	if m, err := mountAt(dir); err != nil {
		return err
	} else if m.present {
		return fmt.Errorf("%s is mounted already: unmount it first, or choose another bundle: %w", dir, errdefs.ErrAlreadyExists)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return failed("read "+dir, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty: unmount it first, or choose another bundle: %w", dir, errdefs.ErrAlreadyExists)
	}
	return nil
}

func writeConfig(bundle string, rootfs rootDir, image ocispec.Image) error {
	spec, err := newSpec(rootfs, image)
	if err != nil {
		return err
	}
	body, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("write config.json: %w", err)
	}
	draft := filepath.Join(bundle, draftName)
	if err := os.WriteFile(draft, body, 0o600); err != nil {
		return failed("write config.json", err)
	}
	if err := os.Rename(draft, filepath.Join(bundle, configName)); err != nil {
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
