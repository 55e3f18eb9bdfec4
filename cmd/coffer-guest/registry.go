// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/coffer-cc/coffer/imagepull/document"
	"github.com/coffer-cc/coffer/imagepull/registry"
	registryconf "github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

// registryOptions reads the files and the entries of the init-data that the
// configuration names, so that a bad one is an error at the start. Resources of
// the KBS are not asked for yet.
func registryOptions(ctx context.Context, conf Config, named sources, log *slog.Logger) (registry.Options, error) {
	r := conf.Registry
	o := registry.Options{
		Insecure:     r.Insecure,
		Cache:        r.Cache,
		Logger:       log,
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
		pem, err := named.read(path)
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
	var config *registryconf.Config // as it is at the start, nil if that is not known
	if r.ConfigFile != "" {
		loader, err := document.NewLoader("registries configuration", r.ConfigFile, named, refreshOf(conf.Policy), registryconf.Parse)
		if err == nil && isLocal(r.ConfigFile) {
			config, err = loader.Load(ctx)
		}
		if err != nil {
			return o, fmt.Errorf("registry.config_file: %w", err)
		}
		o.ConfigSource = loader
	}
	if r.Credentials == "" && !r.CredentialPrograms {
		return o, nil
	}
	o.Credentials, err = credentials(ctx, r, config, named, log)
	return o, err
}

// credentials are the logins of a docker config.json, and what the programs
// give that it and the registries configuration name.
func credentials(ctx context.Context, r RegistryConfig, config *registryconf.Config, named sources, log *slog.Logger) (registry.CredentialSource, error) {
	opts := login.Options{Programs: r.CredentialPrograms}
	if r.CredentialPrograms && config != nil {
		opts.Helpers = slices.DeleteFunc(slices.Clone(config.CredentialHelpers), func(s string) bool { return s == registryconf.AuthFile })
	}
	fetch := func(ctx context.Context) ([]byte, error) { return named.GetResource(ctx, r.Credentials) }
	if isLocal(r.Credentials) {
		fetch = func(context.Context) ([]byte, error) {
			if r.Credentials == "" {
				return []byte("{}"), nil
			}
			return named.read(r.Credentials)
		}
		b, err := fetch(ctx)
		if err == nil {
			_, err = login.Parse(b, opts)
		}
		if err != nil {
			return nil, fmt.Errorf("registry.credentials: %s: %w", r.Credentials, err)
		}
	}
	return login.NewLoader(fetch, login.LoaderOptions{Lifetime: time.Duration(r.CredentialsRefresh), Config: opts, Logger: log}), nil
}
