// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	defaultSnapshotterConfig = "/etc/coffer/snapshotter.toml"
	defaultGuestConfig       = "/etc/coffer/guest.toml"
	routeGuest               = "guest"
)

// snapshotterSettings are the keys of coffer-snapshotter's file that matter here.
type snapshotterSettings struct {
	Route             string `toml:"route"`
	Name              string `toml:"name"`
	Root              string `toml:"root"`
	Address           string `toml:"address"`
	ContainerdAddress string `toml:"containerd_address"`
	GuestSocket       string `toml:"guest_socket"`
	Guest             struct {
		Mount  string `toml:"mount"`
		Helper string `toml:"helper"`
	} `toml:"guest"`
}

// guestSettings are those of coffer-guest's.
type guestSettings struct {
	KBS struct {
		URL    string `toml:"url"`
		CAFile string `toml:"ca_file"`
	} `toml:"kbs"`
	Image struct {
		WorkDir string `toml:"work_dir"`
	} `toml:"image"`
}

// defaultSnapshotterSettings are what the file's absence means: as
// coffer-snapshotter's default.toml says.
func defaultSnapshotterSettings() (s snapshotterSettings) {
	s.Route, s.Name = "local", "coffer"
	s.Root = "/var/lib/coffer/snapshotter"
	s.Address = "/run/coffer/snapshotter.sock"
	s.ContainerdAddress = "/run/containerd/containerd.sock"
	s.GuestSocket = "/run/coffer/guest.sock"
	s.Guest.Mount, s.Guest.Helper = "kata", "nydus-overlayfs-coffer"
	return s
}

func defaultGuestSettings() (s guestSettings) {
	s.Image.WorkDir = "/var/lib/coffer/guest"
	return s
}

// read decodes the file at path, or the usual one if it is there.
func read(path, usual string, into any) (found string, err error) {
	name := cmp.Or(path, usual)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && path == "" {
		return "", nil
	}
	if err != nil {
		return name, err
	}
	if err := toml.Unmarshal(b, into); err != nil {
		return name, fmt.Errorf("%s: %w", name, err)
	}
	return name, nil
}

func checkSettings(_ context.Context, n *node) (found []Finding) {
	for _, f := range []struct {
		program, flag, path string
		err                 error
	}{
		{"coffer-snapshotter", "--snapshotter-config", n.snapshotterFile, n.snapshotterErr},
		{"coffer-guest", "--guest-config", n.guestFile, n.guestErr},
	} {
		switch {
		case f.err != nil:
			found = append(found, Finding{Level: Problem, Text: fmt.Sprintf("configuration of %s: %v", f.program, f.err), Fix: "mend the file, or name the right one with " + f.flag})
		case f.path == "":
			found = append(found, Finding{Level: OK, Text: f.program + " has no configuration file: its defaults count"})
		default:
			found = append(found, Finding{Level: OK, Text: fmt.Sprintf("%s is configured by %s", f.program, f.path)})
		}
	}
	return found
}

// snapshotterConfig and guestConfig are the files to change.
func (n *node) snapshotterConfig() string { return cmp.Or(n.snapshotterFile, defaultSnapshotterConfig) }

func (n *node) guestConfig() string { return cmp.Or(n.guestFile, defaultGuestConfig) }

// guestRoute tells whether the TEEs are Kata's guests.
func (s snapshotterSettings) guestRoute() bool { return s.Route == routeGuest }

func lines(l ...string) string { return strings.Join(l, "\n") }
