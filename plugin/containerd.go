// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	_ "embed"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
)

// Stanza is the part of containerd's configuration that makes it use the
// snapshotter: as a file of its own, imported by containerd's main file.
type Stanza struct {
	// Address is the path of the snapshotter's unix socket.
	Address string
	// Root is the snapshotter's folder; containerd accounts image storage
	// by its file system.
	Root string
	// Containerd is the release, such as "2.4". Empty means DefaultContainerd.
	Containerd string
	// Route is how layers get into the TEE. Empty means RouteLocal, the
	// only one so far.
	Route string
	// SystemdCgroup makes runc use systemd for cgroups, as kubelet does on
	// most machines. False leaves it to the main file.
	SystemdCgroup bool
}

const (
	// Name is the name of the snapshotter, and of the runtime handler that
	// uses it, in containerd.
	Name = "coffer"
	// DefaultContainerd is the containerd release of a Stanza without one.
	DefaultContainerd = "2.4"
	// RouteLocal is the route in which the machine is itself the TEE.
	RouteLocal = "local"
)

//go:embed containerd.toml.tmpl
var stanza string

// TOML returns the stanza as a TOML file.
func (s Stanza) TOML() ([]byte, error) {
	if s.Route != "" && s.Route != RouteLocal {
		return nil, fmt.Errorf("route %q is unknown: use %q: %w", s.Route, RouteLocal, errdefs.ErrInvalidArgument)
	}
	version, err := configVersion(s.Containerd)
	if err != nil {
		return nil, err
	}
	for _, path := range []string{s.Address, s.Root} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("path %q for containerd must be absolute: %w", path, errdefs.ErrInvalidArgument)
		}
	}
	tmpl, err := template.New("containerd.toml").Funcs(template.FuncMap{"toml": strconv.Quote}).Parse(stanza)
	if err != nil {
		return nil, fmt.Errorf("containerd stanza: %w", err)
	}
	var out bytes.Buffer
	err = tmpl.Execute(&out, struct {
		Stanza
		Version        int
		Name, Platform string
	}{s, version, Name, "linux/" + runtime.GOARCH})
	if err != nil {
		return nil, fmt.Errorf("containerd stanza: %w", err)
	}
	return out.Bytes(), nil
}

// configVersion is the version of containerd's configuration format that a
// release reads without migration.
func configVersion(release string) (int, error) {
	if release == "" {
		release = DefaultContainerd
	}
	major, rest, _ := strings.Cut(strings.TrimPrefix(release, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(minor)
	switch {
	case err != nil:
		return 0, fmt.Errorf("containerd release %q is not MAJOR.MINOR: %w", release, errdefs.ErrInvalidArgument)
	case major == "2" && n >= 4:
		return 4, nil
	case major == "2" && n >= 1:
		return 3, nil
	}
	return 0, fmt.Errorf("containerd %s is not supported: use 2.1 or newer: %w", release, errdefs.ErrInvalidArgument)
}
