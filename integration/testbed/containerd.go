// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	containerd "github.com/containerd/containerd/v2/client"
)

// containerdConfig is everything of containerd's configuration but coffer's
// part, which coffer-snapshotter prints: for the newest release, and in the
// formats of older ones.
//
//go:embed containerd.toml.tmpl containerd2.toml.tmpl containerd3.toml.tmpl
var containerdConfig embed.FS

// containerdTemplate is the file for a release; "" is the newest.
func containerdTemplate(release string) string {
	switch release {
	case "1.7":
		return "containerd2.toml.tmpl"
	case "2.0", "2.1", "2.2":
		return "containerd3.toml.tmpl"
	}
	return "containerd.toml.tmpl"
}

const hostsConfig = `server = "http://%[1]s"

[host."http://%[1]s"]
  capabilities = ["pull", "resolve", "push"]
`

// prepareContainerd writes containerd's configuration, with what
// coffer-snapshotter says about itself as an imported drop-in.
func (t *Testbed) prepareContainerd(ctx context.Context) error {
	t.pause = t.RegistryHost + "/pause:1"
	imports, inMain := "", ""
	if !t.opts.Plain {
		imports = t.DropIn()
		var err error
		if inMain, err = t.writeDropIn(ctx, imports); err != nil {
			return err
		}
	}
	hosts := filepath.Join(t.HostsDir(), t.RegistryHost)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, hostsConfig, t.RegistryHost), 0o600); err != nil {
		return err
	}
	tmpl, err := template.ParseFS(containerdConfig, containerdTemplate(t.opts.Release))
	if err != nil {
		return err
	}
	var config strings.Builder
	err = tmpl.Execute(&config, map[string]string{"Dir": t.path("c"), "Tools": t.opts.Tools, "Pause": t.pause, "Imports": imports, "Main": inMain})
	if err != nil {
		return err
	}
	file := t.path("c", "config.toml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return err
	}
	t.Containerd = t.component("containerd", t.opts.Tools, "--config", file)
	if t.opts.Kata != nil {
		return t.prepareKata()
	}
	return nil
}

// ContainerdSocket is where containerd serves.
func (t *Testbed) ContainerdSocket() string { return t.path("c", "c.sock") }

// DropIn is the file that makes containerd use coffer.
func (t *Testbed) DropIn() string { return t.path("c", "coffer.toml") }

// SnapshotterConfig is the configuration file of coffer-snapshotter.
func (t *Testbed) SnapshotterConfig() string { return t.snapshotterConfig() }

// ContainerdState is the folder below which containers' file systems are mounted.
func (t *Testbed) ContainerdState() string { return t.path("c", "state") }

// HostsDir is the folder that says how containerd's clients reach registries.
func (t *Testbed) HostsDir() string { return t.path("c", "certs.d") }

// PauseRef is the image of pods' first containers.
func (t *Testbed) PauseRef() string { return t.pause }

// Runc is the path of runc.
func (t *Testbed) Runc() string { return t.tool("runc") }

// Client is a client of containerd, which the caller closes. CRI's images and
// containers are in the namespace k8s.io.
func (t *Testbed) Client(namespace string) (*containerd.Client, error) {
	return containerd.New(t.ContainerdSocket(), containerd.WithDefaultNamespace(namespace))
}
