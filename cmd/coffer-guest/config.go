// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

const defaultConfigPath = "/etc/coffer/guest.toml"

//go:embed default.toml
var defaultConfig string

// Config is the configuration file. All of it decides what the TEE trusts, so
// it must be measured: a host that can change it can name a key service, a
// registry or a work directory of its own. What each key means is in
// default.toml.
type Config struct {
	Sockets struct {
		LayerPuller      string `toml:"layer_puller"`
		CDH              string `toml:"cdh"`
		AttestationAgent string `toml:"attestation_agent"`
	} `toml:"sockets"`
	Attester struct {
		TEE      string `toml:"tee"`
		Measure  string `toml:"measure"`
		EventLog string `toml:"event_log"`
	} `toml:"attester"`
	KBS struct {
		URL    string `toml:"url"`
		CAFile string `toml:"ca_file"`
	} `toml:"kbs"`
	Image struct {
		WorkDir      string `toml:"work_dir"`
		MaxDownloads int    `toml:"max_downloads"`
		MaxUnpacks   int    `toml:"max_unpacks"`
		VerifyFirst  bool   `toml:"verify_before_unpack"`
		Limits       struct {
			MaxEntries  int64 `toml:"max_entries"`
			MaxBytes    int64 `toml:"max_bytes"`
			MaxMetadata int64 `toml:"max_metadata"`
			MaxRatio    int64 `toml:"max_ratio"`
		} `toml:"limits"`
	} `toml:"image"`
	Registry struct {
		Credentials string   `toml:"credentials"`
		Insecure    []string `toml:"insecure"`
		CAFiles     []string `toml:"ca_files"`
	} `toml:"registry"`
	Log struct {
		Level string `toml:"level"`
	} `toml:"log"`
}

// The values of attester.measure.
const (
	measureAuto     = "auto"
	measureRequired = "required"
	measureOff      = "off"
)

// Default returns what an empty file means.
func Default() Config {
	var c Config
	c.Sockets.LayerPuller = "/run/coffer/guest.sock"
	c.Sockets.CDH = "unix:///run/confidential-containers/cdh.sock"
	c.Sockets.AttestationAgent = "unix:///run/confidential-containers/attestation-agent/attestation-agent.sock"
	c.Attester.TEE = "auto"
	c.Attester.Measure = measureAuto
	c.Attester.EventLog = "/run/attestation-agent"
	c.Image.WorkDir = "/var/lib/coffer/guest"
	c.Image.Limits.MaxEntries = unpack.DefaultMaxEntries
	c.Image.Limits.MaxBytes = unpack.DefaultMaxBytes
	c.Image.Limits.MaxMetadata = unpack.DefaultMaxMetadata
	c.Image.Limits.MaxRatio = unpack.DefaultMaxRatio
	c.Registry.Insecure = []string{}
	c.Registry.CAFiles = []string{}
	c.Log.Level = "info"
	return c
}

// loadConfig reads path. Where path is "", it reads the default path, and
// returns the defaults if there is no file.
func loadConfig(path string) (Config, error) {
	c := Default()
	optional := path == ""
	if optional {
		path = defaultConfigPath
	}
	err := daemon.DecodeStrict(path, &c)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Validate checks what can be checked without looking at the machine. The
// error begins with the key that is wrong.
func (c Config) Validate() error {
	sockets := map[string]string{}
	for _, s := range []struct{ key, value string }{
		{"sockets.layer_puller", c.Sockets.LayerPuller},
		{"sockets.cdh", c.Sockets.CDH},
		{"sockets.attestation_agent", c.Sockets.AttestationAgent},
	} {
		path := socketPath(s.value)
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", s.key, s.value)
		}
		if other, taken := sockets[path]; taken {
			return fmt.Errorf("%s: the same socket as %s", s.key, other)
		}
		sockets[path] = s.key
	}
	if c.Attester.TEE == "" {
		return errors.New(`attester.tee: empty; use "auto", "tdx" or "sample"`)
	}
	if m := c.Attester.Measure; m != measureAuto && m != measureRequired && m != measureOff {
		return fmt.Errorf("attester.measure: %q; use %q, %q or %q", m, measureAuto, measureRequired, measureOff)
	}
	if !filepath.IsAbs(c.Attester.EventLog) {
		return fmt.Errorf("attester.event_log: %q is not an absolute path", c.Attester.EventLog)
	}
	if !filepath.IsAbs(c.Image.WorkDir) {
		return fmt.Errorf("image.work_dir: %q is not an absolute path", c.Image.WorkDir)
	}
	if c.Image.MaxDownloads < 0 || c.Image.MaxUnpacks < 0 {
		return errors.New("image.max_downloads and image.max_unpacks: less than 0")
	}
	if l := c.Image.Limits; min(l.MaxEntries, l.MaxBytes, l.MaxMetadata, l.MaxRatio) <= 0 {
		return errors.New("image.limits: each must be more than 0")
	}
	if i := slices.IndexFunc(c.Registry.Insecure, func(s string) bool { return s == "" || strings.Contains(s, "/") }); i >= 0 {
		return fmt.Errorf("registry.insecure: %q is not host[:port]", c.Registry.Insecure[i])
	}
	if c.KBS.URL == "" && c.KBS.CAFile != "" {
		return errors.New("kbs.ca_file: given without kbs.url")
	}
	if _, err := daemon.ParseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	return nil
}

func socketPath(s string) string { return strings.TrimPrefix(s, "unix://") }
