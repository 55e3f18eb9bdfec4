// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/status"

	cdh "github.com/coffer-cc/coffer/cdh/api"
)

const (
	volumePrefix  = "io.katacontainers.volume="
	containerType = "io.kubernetes.cri.container-type"
	imageName     = "io.kubernetes.cri.image-name"
)

// volume is what Kata reads of a volume.
type volume struct {
	VolumeType string `json:"volume_type"`
	Source     string `json:"source"`
	ImagePull  *struct {
		Metadata map[string]string `json:"metadata"`
	} `json:"image_pull"`
}

// storage is what Kata's shim tells its agent of a root file system.
type storage struct {
	Driver        string   `json:"driver"`
	DriverOptions []string `json:"driver_options"`
	Source        string   `json:"source"`
	FSType        string   `json:"fstype"`
	MountPoint    string   `json:"mount_point"`
	MountType     string   `json:"mount_type"` // what it was made of; not for the agent
}

// guestRoot makes the root file system of a container in the guest.
func (t *tasks) guestRoot(ctx context.Context, r *task.CreateTaskRequest) error {
	file := filepath.Join(r.Bundle, "config.json")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	s, err := t.storage(r, spec.Annotations)
	if err != nil {
		return err
	}
	if err := t.record(s); err != nil {
		return err
	}
	bundle := t.bundle(r.ID)
	if spec.Annotations[containerType] == "sandbox" {
		if err := t.unpackPause(bundle); err != nil {
			return err
		}
		spec.Process.Args, spec.Process.User = []string{"/busybox", "sleep", "1000000"}, specs.User{}
	} else if err := t.pull(ctx, s.Source, bundle); err != nil {
		return err
	}
	spec.Root.Path = filepath.Join(bundle, "rootfs")
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// storage reads the mounts as Kata does.
func (t *tasks) storage(r *task.CreateTaskRequest, annotations map[string]string) (storage, error) {
	if len(r.Rootfs) != 1 {
		return storage{}, fmt.Errorf("%d mounts for a root file system, and only one can be for the guest", len(r.Rootfs))
	}
	m := r.Rootfs[0]
	metadata := map[string]string{}
	if !t.Force {
		v, err := readVolume(m)
		if err != nil {
			return storage{}, err
		}
		maps.Copy(metadata, v.ImagePull.Metadata)
	}
	maps.Copy(metadata, annotations)
	b, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return storage{}, err
	}
	s := storage{
		Driver: "image_guest_pull", DriverOptions: []string{"image_guest_pull=" + string(b)}, FSType: "overlay",
		MountPoint: filepath.Join(t.bundle(r.ID), "rootfs"), MountType: m.Type,
	}
	if s.Source = annotations[imageName]; annotations[containerType] == "sandbox" {
		s.Source = "pause"
	}
	if s.Source == "" {
		return s, errors.New("failed to get image name from annotations")
	}
	return s, nil
}

func readVolume(m *types.Mount) (volume, error) {
	var found []volume
	helper, isFuse := strings.CutPrefix(m.Type, "fuse.")
	if !isFuse || !strings.HasPrefix(path.Base(helper), "nydus-overlayfs") {
		return volume{}, fmt.Errorf("a mount of type %s would be mounted on the host", m.Type)
	}
	for _, option := range m.Options {
		encoded, ok := strings.CutPrefix(option, volumePrefix)
		if !ok {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return volume{}, fmt.Errorf("volume: %w", err)
		}
		var v volume
		if err := json.Unmarshal(b, &v); err != nil {
			return volume{}, fmt.Errorf("volume: %w", err)
		}
		if v.VolumeType == "image_guest_pull" {
			found = append(found, v)
		}
	}
	if len(found) != 1 || found[0].Source == "" || found[0].ImagePull == nil || found[0].ImagePull.Metadata == nil {
		return volume{}, fmt.Errorf("%d volumes for the guest to pull in %q", len(found), m.Options)
	}
	return found[0], nil
}

// record notes what the agent would be told, one line of JSON for each container.
func (t *tasks) record(s storage) error {
	f, err := os.OpenFile(filepath.Join(t.Guest, "storages.json"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(f).Encode(s), f.Close())
}

func (t *tasks) unpackPause(bundle string) error {
	program, err := os.ReadFile(t.Busybox)
	if err != nil {
		return err
	}
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(rootfs, "busybox"), program, 0o755)
}

// pull asks the hub in the guest for the image.
func (t *tasks) pull(ctx context.Context, image, bundle string) error {
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	conn, err := net.Dial("unix", t.CDH)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	_, err = cdh.NewImagePullServiceClient(client).PullImage(ctx, &cdh.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
	if s, ok := status.FromError(err); ok && err != nil {
		err = fmt.Errorf("agent: rpc status: %s: %s", s.Code(), s.Message())
	}
	if err != nil {
		err = errors.Join(err, t.removeTree(bundle))
	}
	return errors.Join(err, client.Close())
}

func (t *tasks) bundle(id string) string { return filepath.Join(t.Guest, id) }

// removeBundle does what the agent does when a container goes, or what the end
// of the guest does.
func (t *tasks) removeBundle(id string) error { return t.removeTree(t.bundle(id)) }

func (t *tasks) removeTree(bundle string) error {
	rootfs := filepath.Join(bundle, "rootfs")
	err := syscall.Unmount(rootfs, syscall.MNT_DETACH)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
		err = nil // not a mount: pause
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", rootfs, err)
	}
	return os.RemoveAll(bundle)
}
