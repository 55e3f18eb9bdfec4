// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"net"
	"path/filepath"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/plugin"
	"github.com/coffer-cc/coffer/snapshotter/cache"
	"github.com/containerd/errdefs"
)

const defaultConfigPath = "/etc/coffer/snapshotter.toml"

//go:embed default.toml
var defaultTOML []byte

// The values of guest.mount.
const (
	mountKata    = "kata"
	mountOverlay = "overlay"
)

// Config is the configuration file. None of it is trusted by the TEE: the host
// writes it.
type Config struct {
	// Route is local or guest.
	Route string `toml:"route"`
	// Name is the snapshotter's in containerd.
	Name string `toml:"name"`
	// Root is the snapshotter's folder.
	Root string `toml:"root"`
	// Address is the path of the unix socket for containerd.
	Address string `toml:"address"`
	// ContainerdAddress is the path of containerd's unix socket.
	ContainerdAddress string `toml:"containerd_address"`
	// GuestSocket is the path of coffer-guest's unix socket.
	GuestSocket string `toml:"guest_socket"`
	// Registries are host:port of registries on other ports than 443.
	Registries []string `toml:"registries"`
	// Guest is how the route guest mounts.
	Guest struct {
		// Mount is kata or overlay.
		Mount string `toml:"mount"`
		// Helper is the mount helper's name or absolute path.
		Helper string `toml:"helper"`
		// StaticVolume leaves hints of the image out of the volume.
		StaticVolume bool `toml:"static_volume"`
	} `toml:"guest"`
	Metrics struct {
		// Address is host:port or unix:///path; empty is nowhere.
		Address string `toml:"address"`
	} `toml:"metrics"`
	// Cache is the node's store of blobs for guests.
	Cache CacheConfig `toml:"cache"`
	Log   struct {
		// Level is debug, info, warn or error.
		Level string `toml:"level"`
	} `toml:"log"`
}

// Default is the configuration without a file; default.toml says the same.
func Default() Config {
	c := Config{
		Route:             plugin.RouteLocal,
		Name:              plugin.Name,
		Root:              "/var/lib/coffer/snapshotter",
		Address:           "/run/coffer/snapshotter.sock",
		ContainerdAddress: "/run/containerd/containerd.sock",
		GuestSocket:       "/run/coffer/guest.sock",
		Registries:        []string{},
	}
	c.Guest.Mount = mountKata
	c.Guest.Helper = "nydus-overlayfs-coffer"
	c.Cache = CacheConfig{
		Root:       "/var/lib/coffer/cache",
		MaxBytes:   cache.DefaultMaxBytes,
		Registries: []string{},
		CAFiles:    []string{},
	}
	c.Log.Level = "info"
	return c
}

// Validate reports the first value that cannot work.
func (c Config) Validate() error {
	if c.Route != plugin.RouteLocal && c.Route != plugin.RouteGuest {
		return fmt.Errorf("route = %q: use %q or %q: %w", c.Route, plugin.RouteLocal, plugin.RouteGuest, errdefs.ErrInvalidArgument)
	}
	if c.Guest.Mount != mountKata && c.Guest.Mount != mountOverlay {
		return fmt.Errorf("guest.mount = %q: use %q or %q: %w", c.Guest.Mount, mountKata, mountOverlay, errdefs.ErrInvalidArgument)
	}
	if c.Metrics.Address != "" {
		if a, err := parseAddress(c.Metrics.Address); err != nil || a.network == "vsock" {
			return fmt.Errorf("metrics.address: %q is neither host:port nor unix:///path: %w", c.Metrics.Address, errdefs.ErrInvalidArgument)
		}
	}
	if _, err := (plugin.Stanza{Name: c.Name, Address: c.Address, Root: c.Root}).TOML(); err != nil && filepath.IsAbs(c.Address) && filepath.IsAbs(c.Root) {
		return fmt.Errorf("name: %w", err)
	}
	paths := []struct{ key, path string }{
		{"root", c.Root},
		{"address", c.Address},
		{"containerd_address", c.ContainerdAddress},
		{"guest_socket", c.GuestSocket},
	}
	for _, p := range paths {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("%s = %q must be an absolute path: %w", p.key, p.path, errdefs.ErrInvalidArgument)
		}
	}
	for _, r := range c.Registries {
		if _, _, err := net.SplitHostPort(r); err != nil {
			return fmt.Errorf("registries: %q is not host:port: %w", r, errdefs.ErrInvalidArgument)
		}
	}
	if err := c.Cache.validate(); err != nil {
		return err
	}
	_, err := daemon.ParseLevel(c.Log.Level)
	return err
}

// loadConfig reads the file at path over the defaults. The default path need
// not exist.
func loadConfig(path string) (Config, error) {
	c := Default()
	if path == "" {
		return c, nil
	}
	if err := daemon.DecodeStrict(path, &c); err != nil {
		return c, err
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
