// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package login

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// dockerHub is the one spelling of Docker Hub's host here.
const dockerHub = "docker.io"

// Credential is what one registry accepts. The zero value is no credential.
type Credential struct {
	Username, Password string
	// IdentityToken buys access tokens at the registry's token server.
	IdentityToken string
	// RegistryToken is an access token itself.
	RegistryToken string
}

// LogValue keeps the secret out of logs.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String keeps the secret out of texts.
func (c Credential) String() string {
	if c == (Credential{}) {
		return "no credential"
	}
	return "credential (hidden)"
}

// GoString is String.
func (c Credential) GoString() string { return c.String() }

// MarshalJSON keeps the secret out of documents.
func (c Credential) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// Source finds credentials. It is asked only after a registry has refused a
// request without any, and must be safe for concurrent use.
type Source interface {
	// Credential returns that for a repository of a registry, host[:port] as
	// references name it ("docker.io"). No credential is the zero value.
	Credential(ctx context.Context, registry, repository string) (Credential, error)
}

// Refresher is a Source whose credentials change with time.
type Refresher interface {
	Source
	// Refresh is called when a registry has refused what Credential returned.
	// Credential is then asked once more.
	Refresh(ctx context.Context) error
}

// Options say what beside the document gives credentials.
type Options struct {
	// Programs allows to run the docker-credential programs that the document
	// names. Without it credHelpers are an error when they are needed, and
	// credsStore is passed over.
	Programs bool
	// Helpers names docker-credential programs to ask, in order, for what the
	// document has nothing about. They need no Programs.
	Helpers []string
	// Directory has the programs; empty means that they are looked for in PATH.
	Directory string
}

// Config is a docker config.json. A nil Config has no credentials.
type Config struct {
	logins  map[string]Credential // by host or host/path
	helpers map[string]string     // by host
	store   string
	opts    Options
}

type entry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Parse reads a docker config.json. Keys of "auths" are hosts or host/path
// prefixes, with or without https://. Errors are InvalidArgument and never hold
// a secret.
func Parse(config []byte, opts Options) (*Config, error) {
	var file struct {
		Auths       map[string]entry  `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return nil, fmt.Errorf("registry credentials: not a docker config.json (%T): %w", err, errdefs.ErrInvalidArgument)
	}
	c := &Config{
		logins: make(map[string]Credential, len(file.Auths)), helpers: make(map[string]string, len(file.CredHelpers)),
		store: file.CredsStore, opts: opts,
	}
	// Of several spellings of one registry that of references counts, else the
	// last of them.
	for _, key := range slices.Sorted(maps.Keys(file.Auths)) {
		e := file.Auths[key]
		cred, err := e.credential()
		if err != nil {
			return nil, fmt.Errorf("registry credentials: auths %.200q: %w", key, err)
		}
		if cred != (Credential{}) {
			if canonical := canonicalKey(key); canonical == key || !file.Auths[canonical].has() {
				c.logins[canonical] = cred
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(file.CredHelpers)) {
		program := file.CredHelpers[key]
		if err := checkProgram(program); err != nil {
			return nil, fmt.Errorf("registry credentials: credHelpers %.200q: %w", key, err)
		}
		if canonical := canonicalKey(key); canonical == key || file.CredHelpers[canonical] == "" {
			c.helpers[canonical] = program
		}
	}
	for _, program := range append([]string{c.store}, opts.Helpers...) {
		if program == "" {
			continue
		}
		if err := checkProgram(program); err != nil {
			return nil, fmt.Errorf("registry credentials: %w", err)
		}
	}
	return c, nil
}

// has tells an entry from the empty one that docker leaves for what its store
// holds.
func (e entry) has() bool { return e != (entry{}) }

func (e entry) credential() (Credential, error) {
	cred := Credential{
		Username: e.Username, Password: e.Password,
		IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken,
	}
	if e.Auth == "" {
		return cred, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(e.Auth)
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
	host = canonicalHost(host)
	if path == "" {
		return host
	}
	return host + "/" + path
}

func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// Credential finds the login for a repository: that of its registry's helper,
// else of the longest of registry/repository and its parents that has one, else
// of the store, else of the helpers of Options. Errors of a program are
// Unavailable; FailedPrecondition says that one is named but may not be run.
func (c *Config) Credential(ctx context.Context, registry, repository string) (Credential, error) {
	if c == nil {
		return Credential{}, nil
	}
	host := canonicalHost(registry)
	if program, ok := c.helpers[host]; ok {
		if !c.opts.Programs {
			return Credential{}, fmt.Errorf("registry credentials: credHelpers name docker-credential-%s for %s, but programs are not run for this document: give auths for it instead: %w",
				program, host, errdefs.ErrFailedPrecondition)
		}
		return c.run(ctx, program, host)
	}
	if cred, ok := c.lookup(host + "/" + repository); ok {
		return cred, nil
	}
	if c.store != "" && c.opts.Programs {
		if cred, err := c.run(ctx, c.store, host); err != nil || cred != (Credential{}) {
			return cred, err
		}
	}
	for _, program := range c.opts.Helpers {
		if cred, err := c.run(ctx, program, host); err != nil || cred != (Credential{}) {
			return cred, err
		}
	}
	return Credential{}, nil
}

func (c *Config) lookup(name string) (Credential, bool) {
	for {
		if cred, ok := c.logins[name]; ok {
			return cred, true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return Credential{}, false
		}
		name = name[:i]
	}
}
