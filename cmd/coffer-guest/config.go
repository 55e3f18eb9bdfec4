// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/decompress"
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
	InitData string `toml:"initdata"`
	Sockets  struct {
		LayerPuller      string `toml:"layer_puller"`
		CDH              string `toml:"cdh"`
		AttestationAgent string `toml:"attestation_agent"`
	} `toml:"sockets"`
	Attester struct {
		TEE      string `toml:"tee"`
		Measure  string `toml:"measure"`
		EventLog string `toml:"event_log"`
	} `toml:"attester"`
	KBS      KBSConfig      `toml:"kbs"`
	Image    ImageConfig    `toml:"image"`
	Policy   PolicyConfig   `toml:"policy"`
	Registry RegistryConfig `toml:"registry"`
	Metrics  struct {
		Address string `toml:"address"`
	} `toml:"metrics"`
	Log struct {
		Level string `toml:"level"`
	} `toml:"log"`
}

// KBSConfig says which Key Broker Service is asked.
type KBSConfig struct {
	URL    string `toml:"url"`
	CAFile string `toml:"ca_file"`
}

// ImageConfig says where and how images are unpacked.
type ImageConfig struct {
	WorkDir      string `toml:"work_dir"`
	MaxDownloads int    `toml:"max_downloads"`
	MaxUnpacks   int    `toml:"max_unpacks"`
	VerifyFirst  bool   `toml:"verify_before_unpack"`
	PerImage     struct {
		MaxDownloads int `toml:"max_downloads"`
		MaxUnpacks   int `toml:"max_unpacks"`
	} `toml:"per_image"`
	Keep struct {
		MaxBytes int64           `toml:"max_bytes"`
		MaxAge   daemon.Duration `toml:"max_age"`
	} `toml:"keep"`
	Limits struct {
		MaxEntries  int64 `toml:"max_entries"`
		MaxBytes    int64 `toml:"max_bytes"`
		MaxMetadata int64 `toml:"max_metadata"`
		MaxRatio    int64 `toml:"max_ratio"`
		Compression int64 `toml:"max_compression_ratio"`
	} `toml:"limits"`
}

// PolicyConfig says which images may be used.
type PolicyConfig struct {
	Image      string          `toml:"image"`
	Signatures string          `toml:"signatures"`
	Refresh    daemon.Duration `toml:"refresh"`
	MaxStale   daemon.Duration `toml:"max_stale"`
}

// RegistryConfig says how registries are spoken to. What they serve is checked
// against digests and policy whatever it says.
type RegistryConfig struct {
	Credentials        string          `toml:"credentials"`
	CredentialsRefresh daemon.Duration `toml:"credentials_refresh"`
	CredentialPrograms bool            `toml:"credential_programs"`
	ConfigFile         string          `toml:"config_file"`
	Cache              string          `toml:"cache"`
	Insecure           []string        `toml:"insecure"`
	CAFiles            []string        `toml:"ca_files"`
	CertsDir           string          `toml:"certs_dir"`
	StallTimeout       daemon.Duration `toml:"stall_timeout"`
	Tries              int             `toml:"tries"`
	Platform           string          `toml:"platform"`
	Proxy              struct {
		HTTP            string `toml:"http"`
		HTTPS           string `toml:"https"`
		NoProxy         string `toml:"no_proxy"`
		FromEnvironment bool   `toml:"from_environment"`
	} `toml:"proxy"`
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
	c.Image.Limits.Compression = decompress.DefaultMaxRatio
	c.Policy.Refresh = daemon.Duration(5 * time.Minute)
	c.Policy.MaxStale = daemon.Duration(30 * time.Minute)
	c.Registry.CredentialsRefresh = daemon.Duration(10 * time.Minute)
	c.Registry.StallTimeout = daemon.Duration(time.Minute)
	c.Registry.Tries = imagepull.DefaultTries
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
	if c.InitData != "" && !filepath.IsAbs(c.InitData) {
		return fmt.Errorf("initdata: %q is not an absolute path", c.InitData)
	}
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
	if min(c.Image.MaxDownloads, c.Image.MaxUnpacks, c.Image.PerImage.MaxDownloads, c.Image.PerImage.MaxUnpacks) < 0 {
		return errors.New("image.max_downloads and image.max_unpacks, also in image.per_image: less than 0")
	}
	if c.Image.Keep.MaxBytes < 0 || c.Image.Keep.MaxAge < 0 {
		return errors.New("image.keep: less than 0")
	}
	if l := c.Image.Limits; min(l.MaxEntries, l.MaxBytes, l.MaxMetadata, l.MaxRatio, l.Compression) <= 0 {
		return errors.New("image.limits: each must be more than 0")
	}
	if c.Policy.Refresh <= 0 || c.Policy.MaxStale < 0 {
		return errors.New("policy.refresh must be more than 0, and policy.max_stale not less")
	}
	if c.Policy.Image == "" && c.Policy.Signatures != "" {
		return errors.New("policy.signatures: given without policy.image")
	}
	if c.Registry.StallTimeout <= 0 || c.Registry.CredentialsRefresh <= 0 || c.Registry.Tries <= 0 {
		return errors.New("registry.stall_timeout, registry.credentials_refresh and registry.tries: must be more than 0")
	}
	if i := slices.IndexFunc(c.Registry.Insecure, func(s string) bool { return s == "" || strings.Contains(s, "/") }); i >= 0 {
		return fmt.Errorf("registry.insecure: %q is not host[:port]", c.Registry.Insecure[i])
	}
	if c.KBS.URL == "" && c.KBS.CAFile != "" {
		return errors.New("kbs.ca_file: given without kbs.url")
	}
	if a := c.Metrics.Address; a != "" && !filepath.IsAbs(socketPath(a)) {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return fmt.Errorf("metrics.address: %q is neither host:port nor unix:///path", a)
		}
	}
	if _, err := daemon.ParseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	return nil
}

func socketPath(s string) string { return strings.TrimPrefix(s, "unix://") }
