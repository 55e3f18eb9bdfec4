// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/coffer-cc/coffer/imagepull/publish"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
)

const referenceHelp = `An image is named by REGISTRY/REPO:TAG, REGISTRY/REPO@sha256:DIGEST,
oci:DIR:TAG or oci:DIR. Registries are asked over https, those of this machine
(localhost, 127.0.0.1, ::1) over plain http.`

// registryFlags are the flags of commands that read or write images.
type registryFlags struct {
	plainHTTP   []string
	https       []string
	credentials string
}

func (f *registryFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.plainHTTP, "plain-http", nil,
		"ask the registry `HOST[:PORT]` over plain http, logins included; repeat for more")
	cmd.Flags().StringArrayVar(&f.https, "https", nil,
		"ask the registry `HOST[:PORT]` of this machine over https; repeat for more")
	cmd.Flags().StringVar(&f.credentials, "credentials", "",
		"registry logins, a `FILE` in the form of Docker's config.json (default: the logins of docker and podman)")
}

// access turns the flags into what publish needs.
func (f *registryFlags) access(getenv func(string) string) (publish.Access, error) {
	for _, host := range slices.Concat(f.plainHTTP, f.https) {
		if host == "" || strings.ContainsAny(host, "/ ") {
			return publish.Access{}, usagef("--plain-http and --https want a registry, HOST[:PORT], not %q", host)
		}
	}
	store, err := f.store(getenv)
	if err != nil {
		return publish.Access{}, err
	}
	plain := func(host string) bool {
		return slices.Contains(f.plainHTTP, host) || publish.Loopback(host) && !slices.Contains(f.https, host)
	}
	return publish.Access{Credential: credentials.Credential(store), PlainHTTP: plain}, nil
}

func (f *registryFlags) store(getenv func(string) string) (credentials.Store, error) {
	if f.credentials != "" {
		if _, err := os.Stat(f.credentials); err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		store, err := credentials.NewStore(f.credentials, credentials.StoreOptions{})
		if err != nil {
			return nil, fmt.Errorf("credentials %s: not in the form of Docker's config.json: %w", f.credentials, err)
		}
		return store, nil
	}
	docker, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("logins of docker: %w: repair the file or name another with --credentials", err)
	}
	podman := filepath.Join(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if info, err := os.Stat(podman); err != nil || !info.Mode().IsRegular() {
		return docker, nil //nolint:nilerr // most machines have no podman login
	}
	other, err := credentials.NewStore(podman, credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("logins of podman: %w: repair the file or name another with --credentials", err)
	}
	return credentials.NewStoreWithFallbacks(docker, other), nil
}

// logins are the credentials of a pull: those of --credentials, or else those
// of docker and podman.
func (f *registryFlags) logins(getenv func(string) string) (registry.CredentialSource, error) {
	if f.credentials != "" {
		return readLogins(f.credentials)
	}
	docker := getenv("DOCKER_CONFIG")
	if docker == "" {
		docker = filepath.Join(getenv("HOME"), ".docker")
	}
	var all loginList
	for _, name := range []string{filepath.Join(docker, "config.json"), filepath.Join(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")} {
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
			continue // most machines have none
		}
		one, err := readLogins(name)
		if err != nil {
			return nil, fmt.Errorf("%w: repair the file or name another with --credentials", err)
		}
		all = append(all, one)
	}
	return all, nil
}

func readLogins(name string) (registry.CredentialSource, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	c, err := login.Parse(b, login.Options{Programs: true})
	if err != nil {
		return nil, fmt.Errorf("credentials %s: %w", name, err)
	}
	return c, nil
}

// loginList asks one source after the other.
type loginList []registry.CredentialSource

func (l loginList) Credential(ctx context.Context, host, repository string) (login.Credential, error) {
	for _, source := range l {
		if c, err := source.Credential(ctx, host, repository); err != nil || c != (login.Credential{}) {
			return c, err
		}
	}
	return login.Credential{}, nil
}

// parseReference reads a reference of the command line.
func parseReference(s string) (publish.Reference, error) {
	ref, err := publish.ParseReference(s)
	if err != nil {
		return ref, usageError{err}
	}
	return ref, nil
}
