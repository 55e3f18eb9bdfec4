// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

const referenceHelp = `An image is named by REGISTRY/REPO:TAG, REGISTRY/REPO@sha256:DIGEST,
oci:DIR:TAG or oci:DIR. Registries are asked over https, those of this machine
(localhost, 127.0.0.1, ::1) over plain http.`

// registryFlags are the flags of commands that read or write images.
type registryFlags struct {
	plainHTTP   bool
	credentials string
}

func (f *registryFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.plainHTTP, "plain-http", false,
		"ask registries over http; =false asks those of this machine over https")
	cmd.Flags().StringVar(&f.credentials, "credentials", "",
		"registry logins, a `FILE` in the form of Docker's config.json (default: the logins of docker and podman)")
}

// access turns the flags into what publish needs.
func (f *registryFlags) access(cmd *cobra.Command, getenv func(string) string) (publish.Access, error) {
	store, err := f.store(getenv)
	if err != nil {
		return publish.Access{}, err
	}
	access := publish.Access{Credential: credentials.Credential(store)}
	if cmd.Flags().Changed("plain-http") {
		access.PlainHTTP = &f.plainHTTP
	}
	return access, nil
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

// parseReference reads a reference of the command line.
func parseReference(s string) (publish.Reference, error) {
	ref, err := publish.ParseReference(s)
	if err != nil {
		return ref, usageError{err}
	}
	return ref, nil
}
