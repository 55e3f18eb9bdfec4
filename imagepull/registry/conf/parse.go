// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// file is the format. What it has and nobody asks for is a key that does not
// concern a puller.
type file struct {
	Search            []string          `toml:"unqualified-search-registries"`
	CredentialHelpers []string          `toml:"credential-helpers"`
	ShortNames        string            `toml:"short-name-mode"`
	Aliases           map[string]string `toml:"aliases"`
	Registries        []entry           `toml:"registry"`

	LayerStoreHelper string `toml:"additional-layer-store-auth-helper"` // accepted, without effect
	V1               any    `toml:"registries"`                         // refused
}

type entry struct {
	Prefix       string   `toml:"prefix"`
	Location     string   `toml:"location"`
	Insecure     bool     `toml:"insecure"`
	Blocked      bool     `toml:"blocked"`
	ByDigestOnly bool     `toml:"mirror-by-digest-only"`
	Mirrors      []mirror `toml:"mirror"`
}

type mirror struct {
	Location  string `toml:"location"`
	Insecure  bool   `toml:"insecure"`
	PullFrom  string `toml:"pull-from-mirror"`
	Namespace string `toml:"namespace-proxy"`
}

// Limits of a file, far above what any needs.
const (
	maxFile = 1 << 20
	maxName = 1024
)

// Parse reads a file. Errors are InvalidArgument and say where.
func Parse(b []byte) (*Config, error) {
	c, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("registries configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

func parse(b []byte) (*Config, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("longer than %d MiB", maxFile>>20)
	}
	var f file
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, explain(err)
	}
	if f.V1 != nil {
		return nil, errors.New("the tables [registries.search], [registries.insecure] and [registries.block] are version 1 of the format: " +
			"write search.registries as the list unqualified-search-registries at the top, each of insecure.registries as a [[registry]] " +
			"with location and insecure = true, each of block.registries as one with location and blocked = true")
	}
	c := &Config{Search: f.Search, ShortNames: Mode(f.ShortNames), CredentialHelpers: f.CredentialHelpers}
	if err := c.setShortNames(f.Aliases); err != nil {
		return nil, err
	}
	for i, helper := range c.CredentialHelpers {
		if helper == "" || strings.ContainsAny(helper, "/\\ \t\n\x00") {
			return nil, fmt.Errorf("credential-helpers: entry %d, %.80q, is not the end of the name of a docker-credential program", i+1, helper)
		}
	}
	lines := entryLines(b, len(f.Registries))
	for i, e := range f.Registries {
		r, err := e.registry()
		if err == nil && slices.ContainsFunc(c.Registries, func(o Registry) bool { return o.Prefix == r.Prefix }) {
			err = fmt.Errorf("prefix %q is also that of another entry", r.Prefix)
		}
		if err != nil {
			return nil, fmt.Errorf("[[registry]] %d%s: %w", i+1, atLine(lines[i]), err)
		}
		r.Line = lines[i]
		c.Registries = append(c.Registries, r)
	}
	return c, nil
}

// explain puts the position before what the decoder says.
func explain(err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) && len(missing.Errors) > 0 {
		first := missing.Errors[0]
		line, column := first.Position()
		return fmt.Errorf("line %d, column %d: unknown key %.200q", line, column, strings.Join(first.Key(), "."))
	}
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		line, column := syntax.Position()
		return fmt.Errorf("line %d, column %d: %s", line, column, strings.TrimPrefix(syntax.Error(), "toml: "))
	}
	return err
}

// entryLines finds the lines of the [[registry]] headers; all are 0 where the
// entries are written in another way.
func entryLines(b []byte, entries int) []int {
	lines := make([]int, 0, entries)
	for i, line := range bytes.Split(b, []byte("\n")) {
		text, _, _ := bytes.Cut(line, []byte("#"))
		if inner, ok := bytes.CutPrefix(bytes.TrimSpace(text), []byte("[[")); ok {
			if inner, ok = bytes.CutSuffix(inner, []byte("]]")); ok && strings.Trim(string(inner), " \t\"'") == "registry" {
				lines = append(lines, i+1)
			}
		}
	}
	if len(lines) != entries {
		return make([]int, entries)
	}
	return lines
}

func atLine(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (line %d)", n)
}

func (e entry) registry() (Registry, error) {
	r := Registry{Prefix: e.Prefix, Location: e.Location, Insecure: e.Insecure, Blocked: e.Blocked}
	if r.Prefix == "" && r.Location == "" {
		return r, errors.New("neither prefix nor location")
	}
	if r.Location != "" {
		location, err := checkLocation(r.Location)
		if err != nil {
			return r, fmt.Errorf("location: %w", err)
		}
		r.Location = location
	}
	switch domain, wild := strings.CutPrefix(r.Prefix, "*."); {
	case r.Prefix == "":
		r.Prefix = r.Location
	case wild:
		if host, err := checkLocation(domain); err != nil || host != domain || strings.ContainsAny(domain, "/:") {
			return r, fmt.Errorf("prefix %.200q: a wildcard is *.domain, without port and path", e.Prefix)
		}
	default:
		prefix, err := checkLocation(r.Prefix)
		if err != nil {
			return r, fmt.Errorf("prefix: %w", err)
		}
		r.Prefix = prefix
		if r.Location == "" {
			r.Location = prefix
		}
	}
	for i, m := range e.Mirrors {
		mirror, err := m.mirror(e.ByDigestOnly)
		if err != nil {
			return r, fmt.Errorf("[[registry.mirror]] %d: %w", i+1, err)
		}
		r.Mirrors = append(r.Mirrors, mirror)
	}
	return r, nil
}

func (m mirror) mirror(byDigestOnly bool) (Mirror, error) {
	location, err := checkLocation(m.Location)
	if err != nil {
		return Mirror{}, fmt.Errorf("location: %w", err)
	}
	out := Mirror{Location: location, Insecure: m.Insecure, Namespace: m.Namespace, Tags: !byDigestOnly, Digests: true}
	if byDigestOnly && m.PullFrom != "" {
		return out, errors.New("pull-from-mirror beside mirror-by-digest-only: leave out one of them")
	}
	switch m.PullFrom {
	case "", "all":
	case "digest-only":
		out.Tags = false
	case "tag-only":
		out.Digests = false
	default:
		return out, fmt.Errorf("pull-from-mirror %.80q: use all, digest-only or tag-only", m.PullFrom)
	}
	return out, nil
}

// The grammar of names, as in references.
var (
	hostForm = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])(?::[1-9][0-9]{0,4})?$`)
	pathForm = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

// ValidHost reports whether s is host or host:port, spelled as in names. What
// merely leads to the same machine, as a trailing dot, letters beyond ASCII or a
// port with leading zeros, is none: no entry with the plain spelling would match.
func ValidHost(s string) bool { return hostForm.MatchString(s) }

// checkLocation accepts host[:port][/path] and spells it in one way.
func checkLocation(s string) (string, error) {
	trimmed := strings.TrimRight(s, "/")
	switch {
	case trimmed == "":
		return "", errors.New("empty")
	case len(s) > maxName:
		return "", fmt.Errorf("longer than %d bytes", maxName)
	case strings.Contains(trimmed, "://"):
		return "", fmt.Errorf("%.200q has a scheme: write host[:port][/path], and insecure = true for plain HTTP", s)
	}
	host, path, hasPath := strings.Cut(trimmed, "/")
	if !hostForm.MatchString(host) || hasPath && !pathForm.MatchString(path) {
		return "", fmt.Errorf("%.200q is not host[:port][/path]", s)
	}
	if host = strings.ToLower(host); host == "index.docker.io" {
		host = DockerHub
	}
	if hasPath {
		host += "/" + path
	}
	return host, nil
}

// setShortNames checks all that is about names without a registry.
func (c *Config) setShortNames(aliases map[string]string) error {
	switch c.ShortNames {
	case "":
		c.ShortNames = Permissive
	case Permissive, Enforcing, Disabled:
	default:
		return fmt.Errorf("short-name-mode %.80q: use permissive, enforcing or disabled", string(c.ShortNames))
	}
	for i, s := range c.Search {
		host, err := checkLocation(s)
		if err != nil || strings.Contains(host, "/") || !isHost(host) {
			return fmt.Errorf("unqualified-search-registries: entry %d, %.200q, is not host[:port] with a dot or a port", i+1, s)
		}
		c.Search[i] = host
	}
	c.Aliases = make(map[string]string, len(aliases))
	for short, full := range aliases {
		if full == "" {
			continue // the format's way to take an alias back
		}
		host, path, _ := strings.Cut(short, "/")
		if !pathForm.MatchString(short) || path != "" && isHost(host) {
			return fmt.Errorf("aliases: %.200q is not a name without registry, tag and digest", short)
		}
		name, err := checkLocation(full)
		host, path, _ = strings.Cut(name, "/")
		if err != nil || path == "" || !isHost(host) {
			return fmt.Errorf("aliases: %.200q: %.200q is not host/repository without tag and digest", short, full)
		}
		c.Aliases[short] = inRegistry(host, path)
	}
	return nil
}

// isHost tells the host of a full name from the first word of a short one.
func isHost(s string) bool { return strings.ContainsAny(s, ".:") || s == "localhost" }
