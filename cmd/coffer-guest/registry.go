// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/imagepull/registry"
	registryconf "github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

// registryOptions reads the files that the configuration names, so that a bad
// one is an error at the start. Resources of the KBS are not asked for yet.
func registryOptions(conf Config, resources cdh.ResourceGetter, log *slog.Logger) (registry.Options, error) {
	r := conf.Registry
	o := registry.Options{
		Insecure:     r.Insecure,
		StallTimeout: time.Duration(r.StallTimeout),
		Proxy:        registry.Proxy{HTTP: r.Proxy.HTTP, HTTPS: r.Proxy.HTTPS, NoProxy: r.Proxy.NoProxy, FromEnvironment: r.Proxy.FromEnvironment},
		FindIndex:    conf.Policy.Image != "", // a signature may be the index's
	}
	var err error
	if r.Platform != "" {
		if o.Platform, err = registry.ParsePlatform(r.Platform); err != nil {
			return o, fmt.Errorf("registry.platform: %w", err)
		}
	}
	for _, path := range r.CAFiles {
		pem, err := os.ReadFile(path)
		if err != nil {
			return o, fmt.Errorf("registry.ca_files: %w", err)
		}
		o.CAs = append(append(o.CAs, pem...), '\n')
	}
	if r.CertsDir != "" {
		if o.TLS, err = registry.LoadCertsDir(r.CertsDir); err != nil {
			return o, fmt.Errorf("registry.certs_dir: %w", err)
		}
	}
	if r.ConfigFile != "" {
		b, err := os.ReadFile(r.ConfigFile)
		if err == nil {
			o.Config, err = registryconf.Parse(b)
		}
		if err != nil {
			return o, fmt.Errorf("registry.config_file: %s: %w", r.ConfigFile, err)
		}
	}
	if r.Credentials == "" && !r.CredentialPrograms {
		return o, nil
	}
	o.Credentials, err = credentials(r, o.Config, resources, log)
	return o, err
}

// credentials are the logins of a docker config.json, and what the programs
// give that it and the registries configuration name.
func credentials(r RegistryConfig, config *registryconf.Config, resources cdh.ResourceGetter, log *slog.Logger) (registry.CredentialSource, error) {
	opts := login.Options{Programs: r.CredentialPrograms}
	if r.CredentialPrograms && config != nil {
		opts.Helpers = slices.DeleteFunc(slices.Clone(config.CredentialHelpers), func(s string) bool { return s == registryconf.AuthFile })
	}
	fetch := func(ctx context.Context) ([]byte, error) { return resources.GetResource(ctx, r.Credentials) }
	if isFile(r.Credentials) {
		fetch = func(context.Context) ([]byte, error) {
			if r.Credentials == "" {
				return []byte("{}"), nil
			}
			return os.ReadFile(strings.TrimPrefix(r.Credentials, "file://"))
		}
		b, err := fetch(context.Background())
		if err == nil {
			_, err = login.Parse(b, opts)
		}
		if err != nil {
			return nil, fmt.Errorf("registry.credentials: %s: %w", r.Credentials, err)
		}
	}
	return login.NewLoader(fetch, login.LoaderOptions{Lifetime: time.Duration(r.CredentialsRefresh), Config: opts, Logger: log}), nil
}
