// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/snapshotter/katavolume"
)

// Route says where the layers of images are unpacked.
type Route string

const (
	// Local is the route in which this machine is the TEE: the puller on it
	// unpacks layers, which are mounted here. It is the one of an empty Route.
	Local Route = "local"
	// Guest is the route of Kata: the guest of a pod pulls the image, and
	// nothing of it comes to this machine. The puller is not asked.
	Guest Route = "guest"
)

// GuestOptions are for the route Guest. The zero value is for Kata as it is
// installed.
type GuestOptions struct {
	// Helper is the mount helper by which containerd mounts a container's
	// root on the host, to look up users in it: a file name in containerd's
	// PATH or an absolute path, whose file name begins with nydus-overlayfs.
	// Empty means katavolume.DefaultHelper.
	Helper string
	// PlainMounts leaves the volume out, and with it the helper: for a Kata
	// that pulls every image in the guest, whatever it is told to mount.
	PlainMounts bool
	// StaticVolume sends the same volume for every container, so that a
	// policy of the guest can name it; nothing is told of the image.
	StaticVolume bool
}

// makeEmpty makes the folder of a layer that the guest has, with no more in it
// than the host needs to look up users.
func (s *Snapshotter) makeEmpty(id string, l layer) error {
	return s.makeDir(id, func(dir string) error {
		if err := os.Mkdir(s.upper(id), 0o755); err != nil { //nolint:gosec // a root directory, as in images
			return err
		}
		if err := writeAccounts(s.upper(id), l); err != nil {
			return err
		}
		// The folder must be on the disk before the metadata that relies on it.
		return errors.Join(syncDir(s.upper(id)), syncDir(dir), syncDir(filepath.Dir(dir)))
	})
}

// guestImage is what is known of the image of a container that the guest pulls:
// the labels of its topmost layer, nil if there is no such image, and of its
// lowest one.
type guestImage struct{ top, bottom map[string]string }

// guestImage tells of the image of a snapshot by what is below it: a container's
// own snapshot has no label of its image. A view is for the host alone. It runs
// inside a transaction.
func (s *Snapshotter) guestImage(ctx context.Context, kind snapshots.Kind, parent string) (image guestImage, err error) {
	for s.route == Guest && kind == snapshots.KindActive && parent != "" {
		_, info, _, err := storage.GetInfo(ctx, parent)
		if err != nil {
			return guestImage{}, err
		}
		if _, ok := layerChain(parent); ok {
			if image.top == nil {
				image.top = info.Labels
			}
			image.bottom = info.Labels
		}
		parent = info.Parent
	}
	return image, nil
}

// guestMounts turns the overlay of a container into the mount that makes Kata
// pull the image in the guest.
func (s *Snapshotter) guestMounts(overlay mount.Mount, image guestImage) ([]mount.Mount, error) {
	if image.top == nil || s.guest.PlainMounts {
		return []mount.Mount{overlay}, nil
	}
	option, err := s.volume(image).Option()
	if err != nil {
		return nil, err
	}
	overlay.Type = s.mountType
	overlay.Options = append(overlay.Options, option)
	return []mount.Mount{overlay}, nil
}

// volume says what the guest is to pull. Kata puts the image that the container
// was made of in its place: another one may have the same layers, and the labels
// are those of the first that had them.
func (s *Snapshotter) volume(image guestImage) katavolume.Volume {
	v := katavolume.Static()
	if s.guest.StaticVolume {
		return v
	}
	if ref := image.top[snapshotters.TargetRefLabel]; ref != "" {
		v.Source = ref
	}
	known := v.ImagePull.Metadata
	for _, key := range []string{snapshotters.TargetRefLabel, snapshotters.TargetManifestDigestLabel, snapshotters.TargetLayerDigestLabel} {
		if value := image.top[key]; value != "" {
			known[key] = value
		}
	}
	if layers := image.bottom[snapshotters.TargetImageLayersLabel]; layers != "" {
		known[snapshotters.TargetImageLayersLabel] = layers
	}
	return v
}

// openRoute checks the options of the route, and that the root was not made for
// another: the layers of one are not in the other.
func (s *Snapshotter) openRoute() (err error) {
	switch s.route {
	case Local, Guest:
	default:
		return fmt.Errorf("route %q is unknown: use %q or %q: %w", s.route, Local, Guest, errdefs.ErrInvalidArgument)
	}
	if s.mountType, err = katavolume.MountType(cmp.Or(s.guest.Helper, katavolume.DefaultHelper)); err != nil {
		return err
	}
	made, err := s.madeFor()
	if err != nil || made == s.route {
		return err
	}
	if made != "" {
		return fmt.Errorf("%s was made for the route %q: give the route %q a root, an address and a proxy plugin of its own: %w", s.root, made, s.route, errdefs.ErrFailedPrecondition)
	}
	if s.route == Local {
		return nil
	}
	return errors.Join(os.WriteFile(s.routeFile(), []byte(s.route), 0o600), syncDir(s.root))
}

// madeFor is the route for which the root was made, "" for a new one.
func (s *Snapshotter) madeFor() (Route, error) {
	b, err := os.ReadFile(s.routeFile())
	if err == nil {
		return Route(b), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("open snapshotter: %w", err)
	}
	if _, err := os.Stat(s.database()); err == nil {
		return Local, nil
	}
	return "", nil
}

func (s *Snapshotter) routeFile() string { return filepath.Join(s.root, "route") }
