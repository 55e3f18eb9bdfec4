// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// DockerHub is the registry of names that have none.
const DockerHub = "docker.io"

// Mode says what is done with a short name that has no alias.
type Mode string

// The modes. There is nobody to ask, so Enforcing refuses a name that more than
// one registry may have.
const (
	Permissive Mode = "permissive"
	Enforcing  Mode = "enforcing"
	Disabled   Mode = "disabled"
)

// Config is a parsed file. A nil Config is that of an empty file.
type Config struct {
	// Search are the registries, host or host:port, that a short name is looked
	// for in, in order. nil means Docker Hub; empty means none.
	Search []string
	// ShortNames is never empty.
	ShortNames Mode
	// Aliases are full repositories by short name, without tag and digest.
	Aliases map[string]string
	// Registries in the order of the file.
	Registries []Registry
	// CredentialHelpers are names of docker-credential-* programs to ask, in
	// order; AuthFile among them stands for the credentials file.
	CredentialHelpers []string
}

// AuthFile is the reserved name among credential helpers.
const AuthFile = "containers-auth.json"

// Registry is a [[registry]] entry.
type Registry struct {
	// Prefix is what names must begin with: host[:port][/path], or *.domain.
	Prefix string
	// Location is asked instead; it is Prefix where the file has none, and
	// empty for a wildcard prefix that has none.
	Location string
	Insecure bool
	Blocked  bool
	Mirrors  []Mirror
	// Line is where the entry begins in the file, 0 if that is not known.
	Line int
}

// Mirror is a [[registry.mirror]] entry.
type Mirror struct {
	Location string
	Insecure bool
	// Tags and Digests say for which pulls it may be asked.
	Tags, Digests bool
	// Namespace is sent as the parameter ns of each request, if not empty.
	Namespace string
}

// Endpoint is one place to ask for a repository.
type Endpoint struct {
	// Name is host[:port]/repository there.
	Name string
	// Insecure allows a certificate that does not verify, and plain HTTP.
	Insecure bool
	// Mirror is false for the registry itself, which is last and always there.
	Mirror bool
	// Tags and Digests say for which pulls it may be asked.
	Tags, Digests bool
	// Namespace is to be sent as the parameter ns, if not empty.
	Namespace string
}

// Endpoints are the places to ask for a repository, host[:port]/path without
// tag and digest, in order. Errors are PermissionDenied where an entry blocks it
// and InvalidArgument where a location makes no name of it.
func (c *Config) Endpoints(name string) ([]Endpoint, error) {
	r, rest := c.find(name)
	if r == nil {
		return []Endpoint{{Name: name, Tags: true, Digests: true}}, nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("%s is blocked by %s of the registries configuration: %w", name, r, errdefs.ErrPermissionDenied)
	}
	mirrors, location := r.Mirrors, r.Location
	if r.isOfAnotherPort(name) { // which is another registry, with other images
		mirrors, location = nil, ""
	}
	list := make([]Endpoint, 0, len(mirrors)+1)
	for _, m := range mirrors {
		list = append(list, Endpoint{
			Name: m.Location + rest, Insecure: m.Insecure, Mirror: true,
			Tags: m.Tags, Digests: m.Digests, Namespace: m.Namespace,
		})
	}
	primary := name
	if location != "" && location != r.Prefix {
		primary = location + rest
	}
	list = append(list, Endpoint{Name: primary, Insecure: r.Insecure, Tags: true, Digests: true})
	for _, e := range list {
		if !strings.Contains(e.Name, "/") {
			return nil, fmt.Errorf("%s: the location of %s of the registries configuration makes it %s, which names no repository: %w",
				name, r, e.Name, errdefs.ErrInvalidArgument)
		}
	}
	return list, nil
}

// find returns the entry with the longest prefix of name, nil if there is none,
// and what of name is behind the prefix.
func (c *Config) find(name string) (*Registry, string) {
	if c == nil {
		return nil, ""
	}
	var best *Registry
	var rest string
	for i := range c.Registries {
		r := &c.Registries[i]
		behind, ok := match(name, r.Prefix)
		if ok && (best == nil || r.size() > best.size()) {
			best, rest = r, behind
		}
	}
	return best, rest
}

// match compares the start of name with prefix, up to the end of a component.
func match(name, prefix string) (rest string, ok bool) {
	host, path, _ := strings.Cut(name, "/")
	if domain, wild := strings.CutPrefix(prefix, "*"); wild {
		return "/" + path, strings.HasSuffix(bareHost(host), domain)
	}
	host = strings.TrimSuffix(host, defaultPort)
	prefixHost, prefixPath, hasPath := strings.Cut(prefix, "/")
	prefixHost = strings.TrimSuffix(prefixHost, defaultPort)
	if !hasPath {
		return "/" + path, host == prefixHost || bareHost(host) == prefixHost
	}
	rest, ok = strings.CutPrefix(path, prefixPath)
	return rest, ok && host == prefixHost && (rest == "" || rest[0] == '/')
}

// defaultPort is that of a host without one.
const defaultPort = ":443"

// isOfAnotherPort tells the names that a prefix without a port stands for only
// as one that is blocked or insecure. A wildcard has no other way to say ports.
func (r *Registry) isOfAnotherPort(name string) bool {
	host, _, _ := strings.Cut(name, "/")
	host, prefix := strings.TrimSuffix(host, defaultPort), strings.TrimSuffix(r.Prefix, defaultPort)
	return host != prefix && bareHost(host) == prefix
}

// size orders the prefixes that match a name: the longest counts, and a host
// before a wildcard of the same length.
func (r *Registry) size() int {
	if strings.HasPrefix(r.Prefix, "*") {
		return len(r.Prefix) - 1
	}
	return len(r.Prefix)
}

// bareHost is a host without its port.
func bareHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		return host[:i]
	}
	return host
}

// String names the entry in errors.
func (r *Registry) String() string {
	if r.Line == 0 {
		return fmt.Sprintf("the entry with prefix %q", r.Prefix)
	}
	return fmt.Sprintf("the entry with prefix %q (line %d)", r.Prefix, r.Line)
}

// Names are the full names, host[:port]/path, that a short name without tag and
// digest may stand for, in order: that of its alias, else one in each registry
// that is searched. At least one is returned, or an error: InvalidArgument
// where the configuration has no answer or more than it may.
func (c *Config) Names(short string) ([]string, error) {
	if c == nil {
		return []string{inRegistry(DockerHub, short)}, nil
	}
	if full, ok := c.Aliases[short]; ok {
		return []string{full}, nil
	}
	search := c.Search
	if search == nil {
		search = []string{DockerHub}
	}
	switch {
	case len(search) == 0:
		return nil, fmt.Errorf("%q has no registry, no alias, and unqualified-search-registries is empty: write it as host/repository: %w", short, errdefs.ErrInvalidArgument)
	case len(search) > 1 && c.ShortNames == Enforcing:
		return nil, fmt.Errorf("%q has no registry, and short-name-mode is enforcing while %s are searched: write it as host/repository, or give it an alias: %w",
			short, strings.Join(search, ", "), errdefs.ErrInvalidArgument)
	}
	names := make([]string, len(search))
	for i, registry := range search {
		names[i] = inRegistry(registry, short)
	}
	return names, nil
}

func inRegistry(registry, short string) string {
	if registry == DockerHub && !strings.Contains(short, "/") {
		short = "library/" + short
	}
	return registry + "/" + short
}
