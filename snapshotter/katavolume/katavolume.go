// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package katavolume is the format in which a snapshotter tells Kata what a
// container's root file system is: a mount option with base64 of JSON, in a
// mount of a type that Kata does not mount on the host.
//
// The option comes from the host and is not trusted in the guest: it is a hint.
// The package does no I/O and imports nothing of coffer's.
package katavolume

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// OptionPrefix begins the mount option that carries a volume.
	OptionPrefix = "io.katacontainers.volume="
	// DefaultHelper is the file name of coffer's mount helper.
	DefaultHelper = helperPrefix + "-coffer"
	// UnknownSource is the source of a volume whose image is not known, and
	// of Static. Kata puts the image's name in its place.
	UnknownSource = "dummy-image-reference"

	// helperPrefix begins the file names of helpers whose mounts Kata leaves
	// to the guest.
	helperPrefix = "nydus-overlayfs"
	typePrefix   = "fuse."

	// maxEncoded bounds an option, in bytes. A program's argument may have
	// twice as many, and an image of 500 layers needs a third.
	maxEncoded = 64 << 10
)

// Type says what a volume is.
type Type string

// Every type that Kata has had. Kata 4 acts on ImageGuestPull alone.
const (
	DirectBlock     Type = "direct_block"
	ImageRawBlock   Type = "image_raw_block"
	LayerRawBlock   Type = "layer_raw_block"
	ImageNydusBlock Type = "image_nydus_block"
	LayerNydusBlock Type = "layer_nydus_block"
	ImageNydusFS    Type = "image_nydus_fs"
	LayerNydusFS    Type = "layer_nydus_fs"
	// ImageGuestPull is an image that the guest pulls by itself.
	ImageGuestPull Type = "image_guest_pull"
)

// Volume is what the option says. The order of the fields is that of the JSON.
type Volume struct {
	Type         Type        `json:"volume_type"`
	Source       string      `json:"source,omitempty"`
	FSType       string      `json:"fs_type,omitempty"`
	Options      []string    `json:"options,omitempty"`
	DirectVolume *Metadata   `json:"direct_volume,omitempty"`
	ImagePull    *Metadata   `json:"image_pull,omitempty"`
	NydusImage   *NydusImage `json:"nydus_image,omitempty"`
	DMVerity     *DMVerity   `json:"dm_verity,omitempty"`
}

// Metadata are free words about a volume; nil is not valid, empty is.
type Metadata struct {
	Metadata map[string]string `json:"metadata"`
}

// NydusImage is what the nydus types mount.
type NydusImage struct {
	Config      string `json:"config"`
	SnapshotDir string `json:"snapshot_dir"`
}

// Static is the guest-pull volume that is the same for every image, byte for
// byte, so that a policy of the guest can name it.
func Static() Volume {
	return Volume{Type: ImageGuestPull, Source: UnknownSource, ImagePull: &Metadata{Metadata: map[string]string{}}}
}

// Option returns the mount option for a volume that holds together.
func (v Volume) Option() (string, error) {
	if err := v.check(); err != nil {
		return "", err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("kata volume: %w", err)
	}
	encoded := base64.StdEncoding.EncodeToString(b)
	if len(encoded) > maxEncoded {
		return "", invalid("%d bytes, more than %d", len(encoded), maxEncoded)
	}
	return OptionPrefix + encoded, nil
}

// Parse reads a mount option that begins with OptionPrefix. Fields that it does
// not know are passed over, as Kata does.
func Parse(option string) (Volume, error) {
	encoded, ok := strings.CutPrefix(option, OptionPrefix)
	if !ok {
		return Volume{}, invalid("the option does not begin with %s", OptionPrefix)
	}
	if len(encoded) > maxEncoded {
		return Volume{}, invalid("%d bytes, more than %d", len(encoded), maxEncoded)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") {
		return Volume{}, invalid("not padded standard base64")
	}
	var v Volume
	if err := json.Unmarshal(b, &v); err != nil {
		return Volume{}, invalid("not a JSON object of a volume")
	}
	return v, v.check()
}

// MountType returns the type of mounts that containerd leaves to helper, and
// Kata to its guest. helper is a file name in containerd's PATH or an absolute
// path, and its file name begins with nydus-overlayfs.
func MountType(helper string) (string, error) {
	// mount.fuse hands the name to a shell.
	plain := regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9._/-]*$`)
	switch {
	case !plain.MatchString(helper), path.Clean(helper) != helper, strings.Contains(helper, "/") && !path.IsAbs(helper):
		return "", invalid("mount helper %q must be a file name or an absolute path, of letters, digits, dots, dashes and underscores", helper)
	case !strings.HasPrefix(path.Base(helper), helperPrefix):
		return "", invalid("mount helper %q: Kata asks for a file name that begins with %s", helper, helperPrefix)
	}
	return typePrefix + helper, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("kata volume: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
