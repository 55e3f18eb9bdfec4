// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// newSpec is a runtime config for the image: its process in namespaces of its
// own, with the usual mounts and the capabilities container tools give by
// default. A caller such as kata-agent takes the process from it.
func newSpec(rootfs rootDir, image ocispec.Image) (*specs.Spec, error) {
	if image.OS != "" && image.OS != "linux" {
		return nil, fmt.Errorf("image is for %.100q, not for linux: %w", image.OS, errdefs.ErrInvalidArgument)
	}
	user, err := rootfs.resolveUser(image.Config.User)
	if err != nil {
		return nil, err
	}
	volumes, err := rootfs.volumes(image.Config.Volumes)
	if err != nil {
		return nil, err
	}
	process := &specs.Process{
		User: user,
		Args: slices.Concat(image.Config.Entrypoint, image.Config.Cmd),
		Env:  environment(image.Config.Env),
		Cwd:  image.Config.WorkingDir,
		Capabilities: &specs.LinuxCapabilities{
			Bounding: capabilities(), Permitted: capabilities(), Effective: capabilities(),
		},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
	}
	if !strings.HasPrefix(process.Cwd, "/") {
		process.Cwd = "/" + process.Cwd
	}
	return &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: rootfsName},
		Hostname:    "coffer",
		Mounts:      append(mounts(), volumes...),
		Annotations: annotations(image),
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, nil
}

func environment(env []string) []string {
	hasPath := slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") })
	if hasPath {
		return env
	}
	return append([]string{defaultPath}, env...)
}

func capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

func mounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

// annotations are those the image specification derives from a config; labels
// win over them.
func annotations(image ocispec.Image) map[string]string {
	a := make(map[string]string)
	put := func(key, value string) {
		if value != "" {
			a["org.opencontainers.image."+key] = value
		}
	}
	put("os", image.OS)
	put("os.version", image.OSVersion)
	put("os.features", strings.Join(image.OSFeatures, ","))
	put("architecture", image.Architecture)
	put("variant", image.Variant)
	put("author", image.Author)
	put("stopSignal", image.Config.StopSignal)
	put("exposedPorts", strings.Join(slices.Sorted(maps.Keys(image.Config.ExposedPorts)), ","))
	if image.Created != nil {
		put("created", image.Created.Format(time.RFC3339Nano))
	}
	maps.Copy(a, image.Config.Labels)
	return a
}
