// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"net"
	"path/filepath"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/snapshotter/cache"
	"github.com/containerd/errdefs"
)

const defaultConfigPath = "/etc/coffer/snapshotter.toml"

//go:embed default.toml
var defaultTOML []byte

// Config is the configuration file. None of it is trusted by the TEE: the host
// writes it.
type Config struct {
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
		Root:              "/var/lib/coffer/snapshotter",
		Address:           "/run/coffer/snapshotter.sock",
		ContainerdAddress: "/run/containerd/containerd.sock",
		GuestSocket:       "/run/coffer/guest.sock",
		Registries:        []string{},
	}
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
