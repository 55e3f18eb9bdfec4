// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kata makes a testbed's pods Kata's, as far as containerd and the snapshotter can
// tell: a stand-in for its shim has the images of containers pulled by coffer-guest
// and runs them from the bundles.
type Kata struct {
	// PlainMounts leaves volumes out, and the stand-in does not ask for them.
	PlainMounts bool
	// StaticVolume is the same volume for each container.
	StaticVolume bool
	// NoAnnotations keeps the images' names from the snapshotter.
	NoAnnotations bool
	// LocalPull pulls without containerd's transfer service.
	LocalPull bool
}

// Storage is a container's root file system as Kata's agent is told.
type Storage struct {
	Driver        string   `json:"driver"`
	DriverOptions []string `json:"driver_options"`
	Source        string   `json:"source"`
	MountPoint    string   `json:"mount_point"`
	MountType     string   `json:"mount_type"`
}

// KataGuest is the folder of the guest's bundles.
func (t *Testbed) KataGuest() string { return t.path("vm") }

// Storages are those of all containers so far.
func (t *Testbed) Storages() (all []Storage, err error) {
	f, err := os.Open(filepath.Join(t.KataGuest(), "storages.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for d := json.NewDecoder(f); ; {
		var s Storage
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
}

// prepareKata configures the stand-in and gives it to containerd.
func (t *Testbed) prepareKata() error {
	if err := os.MkdirAll(t.KataGuest(), 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	b, err := json.Marshal(map[string]any{
		"Shim": t.tool("containerd-shim-runc-v2"), "Runc": t.Runc(), "RuncRoot": t.path("runc-vm"), "CDH": t.path("cdh.sock"),
		"Guest": t.KataGuest(), "Busybox": busybox, "Force": t.opts.Kata.PlainMounts,
	})
	if err != nil {
		return err
	}
	file := t.path("standin.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	t.Containerd.env = append(t.Containerd.env, "STANDIN_CONFIG="+file,
		"PATH="+strings.Join([]string{t.opts.Programs, t.opts.Tools, "/usr/sbin:/usr/bin:/sbin:/bin"}, ":"))
	return nil
}

// snapshotter adds the route to the snapshotter's configuration.
func (k *Kata) snapshotter(config string) string {
	mount := "kata"
	if k.PlainMounts {
		mount = "overlay"
	}
	config = "route = \"guest\"\n" + config + "\n[guest]\nmount = \"" + mount + "\"\n"
	if k.StaticVolume {
		config += "static_volume = true\n"
	}
	return config
}

// dropIn changes containerd's part to what the testbed is to show.
func (k *Kata) dropIn(stanza string) string {
	if k.NoAnnotations {
		stanza = strings.ReplaceAll(stanza, "enable_remote_snapshot_annotations", "nothing")
	}
	if k.LocalPull {
		stanza += "\n[plugins.'io.containerd.cri.v1.images']\n  use_local_image_pull = true\n"
	}
	return stanza
}
