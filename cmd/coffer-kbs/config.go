// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

//go:embed default.toml
var defaultConfig string

// Config is the configuration file; default.toml says what each key means.
type Config struct {
	Server struct {
		Address         string          `toml:"address"`
		Certificate     string          `toml:"certificate"`
		PrivateKey      string          `toml:"private_key"`
		InsecureHTTP    bool            `toml:"insecure_http"`
		MaxBody         int64           `toml:"max_body"`
		MaxSessions     int             `toml:"max_sessions"`
		SessionLifetime daemon.Duration `toml:"session_lifetime"`
	} `toml:"server"`
	Admin struct {
		PublicKeyFile string `toml:"public_key_file"`
	} `toml:"admin"`
	Storage struct {
		Path string `toml:"path"`
	} `toml:"storage"`
	Attestation struct {
		Sample          bool            `toml:"sample"`
		TokenLifetime   daemon.Duration `toml:"token_lifetime"`
		Issuer          string          `toml:"issuer"`
		ReferenceValues string          `toml:"reference_values"`
		TDX             struct {
			Collateral bool `toml:"collateral"`
		} `toml:"tdx"`
	} `toml:"attestation"`
	Policy struct {
		Timeout daemon.Duration `toml:"timeout"`
	} `toml:"policy"`
	Log struct {
		Level string `toml:"level"`
	} `toml:"log"`
}

// Default returns what an empty file means.
func Default() Config {
	var c Config
	c.Server.Address = "127.0.0.1:8080"
	c.Server.MaxBody = 2 << 20
	c.Server.MaxSessions = 16384
	c.Server.SessionLifetime = daemon.Duration(5 * time.Minute)
	c.Storage.Path = "/var/lib/coffer/kbs/kbs.db"
	c.Attestation.TokenLifetime = daemon.Duration(5 * time.Minute)
	c.Attestation.Issuer = "coffer-kbs"
	c.Policy.Timeout = daemon.Duration(2 * time.Second)
	c.Log.Level = "info"
	return c
}

func loadConfig(path string) (Config, error) {
	if path == "" {
		return Config{}, errors.New("which configuration? name it with -c FILE, or make one: coffer-kbs init --dir DIR")
	}
	c := Default()
	if err := daemon.DecodeStrict(path, &c); err != nil {
		return Config{}, err
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	tls := c.Server.Certificate != "" || c.Server.PrivateKey != ""
	if _, err := daemon.ParseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	_, port, err := net.SplitHostPort(c.Server.Address)
	if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil {
		return fmt.Errorf("server.address %q is not host:port with a port of at most 65535", c.Server.Address)
	}
	switch {
	case tls && (c.Server.Certificate == "" || c.Server.PrivateKey == ""):
		return errors.New("server.certificate and server.private_key go together")
	case tls && c.Server.InsecureHTTP:
		return errors.New("server.insecure_http excludes server.certificate; remove one")
	case !tls && !c.Server.InsecureHTTP:
		return errors.New("server.certificate is missing; set it with server.private_key, or insecure_http = true for plain HTTP")
	case c.Server.MaxBody < 4<<10 || c.Server.MaxBody > 1<<30:
		return errors.New("server.max_body is not between 4096 and 1073741824 bytes")
	case c.Server.MaxSessions < 1:
		return errors.New("server.max_sessions is less than 1")
	case c.Storage.Path == "":
		return errors.New("storage.path is missing")
	case c.Attestation.Issuer == "":
		return errors.New("attestation.issuer is missing")
	}
	for name, d := range map[string]daemon.Duration{
		"server.session_lifetime": c.Server.SessionLifetime, "attestation.token_lifetime": c.Attestation.TokenLifetime,
	} {
		if d := time.Duration(d); d < time.Second || d > 24*time.Hour {
			return fmt.Errorf("%s is not between 1s and 24h", name)
		}
	}
	if d := time.Duration(c.Policy.Timeout); d < 10*time.Millisecond || d > time.Minute {
		return errors.New("policy.timeout is not between 10ms and 1m")
	}
	return nil
}
