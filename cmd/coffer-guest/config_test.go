// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

// TestDefaultConfig holds the printed default and the built-in one together.
func TestDefaultConfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "guest.toml")
	if err := os.WriteFile(path, []byte(defaultConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := daemon.DecodeStrict(path, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), got); d != "" {
		t.Error(d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for want, edit := range map[string]func(*Config){
		"sockets.cdh: ":               func(c *Config) { c.Sockets.CDH = "unix://cdh.sock" },
		"sockets.layer_puller: ":      func(c *Config) { c.Sockets.LayerPuller = "" },
		"sockets.attestation_agent: ": func(c *Config) { c.Sockets.AttestationAgent = socketPath(c.Sockets.CDH) },
		"attester.tee: ":              func(c *Config) { c.Attester.TEE = "" },
		"attester.measure: ":          func(c *Config) { c.Attester.Measure = "yes" },
		"attester.event_log: ":        func(c *Config) { c.Attester.EventLog = "" },
		"image.work_dir: ":            func(c *Config) { c.Image.WorkDir = "images" },
		"image.max_downloads ":        func(c *Config) { c.Image.MaxUnpacks = -1 },
		"registry.insecure: ":         func(c *Config) { c.Registry.Insecure = []string{"a:1", "http://b"} },
		"kbs.ca_file: ":               func(c *Config) { c.KBS.CAFile = "/ca.pem" },
		"log.level: ":                 func(c *Config) { c.Log.Level = "loud" },
	} {
		c := Default()
		edit(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "guest.toml")
	if err := os.WriteFile(path, []byte("[kbs]\nurl = 'https://kbs'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(path)
	if err != nil || c.KBS.URL != "https://kbs" || c.Image.WorkDir != Default().Image.WorkDir {
		t.Errorf("loaded %+v, %v", c, err)
	}
	if _, err := loadConfig(filepath.Join(dir, "none.toml")); err == nil {
		t.Error("a named file that is missing is no error")
	}
}
