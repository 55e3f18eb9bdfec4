// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Credentials are the logins of a docker config.json. Helper programs it names
// are not run: nothing is executed inside a TEE for a login.
type Credentials struct {
	logins map[string]auth.Credential
}

type dockerLogin struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// ParseCredentials reads a docker config.json; keys of "auths" are hosts or
// host/path prefixes, with or without https://. Errors are InvalidArgument and
// never hold a secret.
func ParseCredentials(config []byte) (*Credentials, error) {
	var file struct {
		Auths map[string]dockerLogin `json:"auths"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return nil, fmt.Errorf("registry credentials: not a docker config.json (%T): %w", err, errdefs.ErrInvalidArgument)
	}
	c := &Credentials{logins: make(map[string]auth.Credential, len(file.Auths))}
	for key, login := range file.Auths {
		cred, err := login.credential()
		if err != nil {
			return nil, fmt.Errorf("registry credentials: auths %q: %w", clip(key, 200), err)
		}
		c.logins[canonicalKey(key)] = cred
	}
	return c, nil
}

func (l dockerLogin) credential() (auth.Credential, error) {
	cred := auth.Credential{
		Username: l.Username, Password: l.Password,
		RefreshToken: l.IdentityToken, AccessToken: l.RegistryToken,
	}
	if l.Auth == "" {
		return cred, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(l.Auth)
	if err != nil {
		return cred, fmt.Errorf("auth is not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(decoded), "\x00\r\n"), ":")
	if !ok {
		return cred, fmt.Errorf("auth is not the base64 of user:password: %w", errdefs.ErrInvalidArgument)
	}
	cred.Username, cred.Password = user, password
	return cred, nil
}

// canonicalKey makes the many spellings of one registry equal.
func canonicalKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimRight(key, "/")
	host, path, _ := strings.Cut(key, "/")
	if path == "v1" || path == "v2" {
		path = ""
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = defaultRegistry
	}
	if path == "" {
		return host
	}
	return host + "/" + path
}

// lookup finds the login for a repository: the longest of registry/repository
// and its parents that has one.
func (c *Credentials) lookup(name string) auth.Credential {
	if c == nil {
		return auth.EmptyCredential
	}
	for {
		if cred, ok := c.logins[name]; ok {
			return cred
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return auth.EmptyCredential
		}
		name = name[:i]
	}
}

// forRepository answers oras's auth client, which asks by the serving host:
// only that host gets the login.
func (c *Credentials) forRepository(ref Reference) auth.CredentialFunc {
	return func(_ context.Context, host string) (auth.Credential, error) {
		if host != ref.host() {
			return auth.EmptyCredential, nil
		}
		return c.lookup(ref.Name()), nil
	}
}
