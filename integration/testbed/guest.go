// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const guestConfig = `[sockets]
layer_puller = %q
cdh = %q
attestation_agent = %q

[attester]
tee = "sample"

[kbs]
url = %q

[image]
work_dir = %q

[registry]
insecure = [%q]
tries = 4

[log]
level = "debug"
`

const snapshotterConfig = `root = %q
address = %q
containerd_address = %q
guest_socket = %q
registries = [%q]

[log]
level = "debug"
`

// prepareGuest configures coffer-guest, in the role of a TEE of the kind sample.
func (t *Testbed) prepareGuest(ctx context.Context) error {
	config := fmt.Sprintf(guestConfig, t.path("g.sock"), t.path("cdh.sock"), t.path("aa.sock"),
		t.KBSURL, t.GuestStore(), t.RegistryHost)
	file := t.GuestConfig()
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	if t.opts.GuestStoreBytes > 0 {
		size := "size=" + strconv.FormatInt(t.opts.GuestStoreBytes, 10)
		if _, err := t.run(ctx, "mount", "-n", "-t", "tmpfs", "-o", size, "tmpfs", t.GuestStore()); err != nil {
			return err
		}
	}
	t.Guest = t.component("coffer-guest", t.opts.Programs, "-c", file)
	t.Guest.ours = true
	return nil
}

// GuestConfig is the configuration file of coffer-guest.
func (t *Testbed) GuestConfig() string { return t.path("guest.toml") }

// GuestStore is the folder of coffer-guest's layers.
func (t *Testbed) GuestStore() string { return t.path("guest") }

// ResizeGuestStore changes the size of a store that Options.GuestStoreBytes
// limits.
func (t *Testbed) ResizeGuestStore(ctx context.Context, bytes int64) error {
	_, err := t.run(ctx, "mount", "-n", "-o", "remount,size="+strconv.FormatInt(bytes, 10), t.GuestStore())
	return err
}

// ListGuestStore lists the layers that are committed, by chain id, and the
// folders in staging, as seen inside the machine.
func (t *Testbed) ListGuestStore(ctx context.Context) (layers, staging []string, err error) {
	metas, err := t.run(ctx, "find", filepath.Join(t.GuestStore(), "layers"), "-mindepth", "2", "-maxdepth", "2",
		"-name", "meta.json", "-exec", "cat", "{}", "+")
	if err != nil {
		return nil, nil, err
	}
	for decode := json.NewDecoder(strings.NewReader(metas)); decode.More(); {
		var meta struct {
			ChainID string `json:"chainID"`
		}
		if err := decode.Decode(&meta); err != nil {
			return nil, nil, fmt.Errorf("meta.json of a layer: %w", err)
		}
		layers = append(layers, meta.ChainID)
	}
	out, err := t.run(ctx, "find", filepath.Join(t.GuestStore(), "staging"), "-mindepth", "1", "-maxdepth", "1", "-printf", `%f\n`)
	return layers, strings.Fields(out), err
}

// GuestPeakRSS is the most memory that coffer-guest has had in RAM, in bytes.
func (t *Testbed) GuestPeakRSS() (int64, error) {
	file := "/proc/" + strconv.Itoa(t.Guest.PID()) + "/status"
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no VmHWM", file)
}

// prepareSnapshotter configures coffer-snapshotter.
func (t *Testbed) prepareSnapshotter(context.Context) error {
	config := fmt.Sprintf(snapshotterConfig, t.path("sn"), t.path("sn.sock"), t.ContainerdSocket(), t.path("g.sock"), t.RegistryHost)
	if t.opts.Kata != nil {
		config = t.opts.Kata.snapshotter(config)
	}
	if err := os.WriteFile(t.snapshotterConfig(), []byte(config), 0o600); err != nil {
		return err
	}
	t.Snapshotter = t.component("coffer-snapshotter", t.opts.Programs, "-c", t.snapshotterConfig())
	t.Snapshotter.ours = true
	return nil
}

func (t *Testbed) snapshotterConfig() string { return t.path("snapshotter.toml") }

// writeDropIn writes what coffer-snapshotter prints for containerd, and returns
// what containerd 1.7 wants in its main file.
func (t *Testbed) writeDropIn(ctx context.Context, file string) (inMain string, err error) {
	args := []string{"config", "containerd", "-c", t.snapshotterConfig()}
	if t.opts.Release != "" {
		args = append(args, "--containerd", t.opts.Release)
	}
	if t.opts.Kata != nil {
		args = append(args, "--handler", "coffer=io.containerd.standin.v2")
	}
	stanza, err := Run(ctx, t.program("coffer-snapshotter"), args...)
	if err != nil {
		return "", err
	}
	if t.opts.Kata != nil {
		stanza = t.opts.Kata.dropIn(stanza)
	}
	if t.opts.Release == "1.7" {
		if inMain, err = Run(ctx, t.program("coffer-snapshotter"), append(args, "--main")...); err != nil {
			return "", err
		}
	}
	return inMain, os.WriteFile(file, []byte(stanza), 0o600)
}
