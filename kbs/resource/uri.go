// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package resource

import (
	"errors"
	"fmt"
	"strings"
)

// DefaultPlugin is the plugin that a URI with the bare scheme "kbs" means.
const DefaultPlugin = "resource"

// maxURI is the longest URI accepted, in bytes.
const maxURI = 4096

const apiPrefix = "/kbs/v0/"

// URI names something that a plugin of a Key Broker Service serves:
// kbs[+plugin]://[host[:port]]/segment[/segment...][?query].
//
// The authority is kept for display only. A client asks the service it is
// configured for, whatever the URI says, so that an image cannot choose who
// sees the TEE's evidence.
type URI struct {
	Plugin    string // "resource" unless the scheme names another; empty means the same
	Authority string // host[:port], usually empty
	Path      string // without leading slash, percent-encoding as written
	Query     string // without question mark, as written
}

// ParseURI parses a resource URI. Percent-encoding is kept as written; empty
// and dot segments, fragments, user names and characters that a URI must
// encode are errors, since a proxy on the way could rewrite them to the name
// of another resource.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("resource URI %q: %w", shorten(s), err)
	}
	return u, nil
}

func parseURI(s string) (URI, error) {
	if len(s) > maxURI {
		return URI{}, fmt.Errorf("longer than %d bytes", maxURI)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return URI{}, errors.New("no scheme; write kbs:///repository/type/tag")
	}
	var u URI
	var err error
	if u.Plugin, err = parsePlugin(scheme); err != nil {
		return URI{}, err
	}
	if strings.ContainsRune(rest, '#') {
		return URI{}, errors.New("has a fragment; write # as %23")
	}
	rest, u.Query, _ = strings.Cut(rest, "?")
	if err := checkEncoded(u.Query); err != nil {
		return URI{}, fmt.Errorf("query: %w", err)
	}
	u.Authority, u.Path, ok = strings.Cut(rest, "/")
	if err := checkAuthority(u.Authority); err != nil {
		return URI{}, err
	}
	if !ok || u.Path == "" {
		return URI{}, errors.New("no path; write kbs:///repository/type/tag")
	}
	if err := checkPath(u.Path); err != nil {
		return URI{}, err
	}
	return u, nil
}

func parsePlugin(scheme string) (string, error) {
	scheme = strings.ToLower(scheme)
	if scheme == "kbs" {
		return DefaultPlugin, nil
	}
	plugin, ok := strings.CutPrefix(scheme, "kbs+")
	if !ok {
		return "", errors.New(`scheme is neither "kbs" nor "kbs+<plugin>"`)
	}
	if plugin == "" {
		return "", errors.New(`no plugin name after "kbs+"`)
	}
	for i := range len(plugin) {
		if c := plugin[i]; !isAlnum(c) && (i == 0 || !strings.ContainsRune("+-.", rune(c))) {
			return "", fmt.Errorf("plugin name %q: only letters, digits, +, - and . are allowed", plugin)
		}
	}
	return plugin, nil
}

func checkAuthority(s string) error {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && !strings.ContainsRune("-._~:[]", rune(c)) {
			return errors.New("authority is not host[:port]")
		}
	}
	return nil
}

func checkPath(path string) error {
	if err := checkEncoded(path); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "" {
			return errors.New("path has an empty segment")
		}
		switch plain := strings.ReplaceAll(strings.ToLower(seg), "%2e", "."); plain {
		case ".", "..":
			return errors.New("path has a dot segment")
		}
	}
	return nil
}

// checkEncoded accepts what may stand literally in a URI's path or query, and
// well-formed percent-encoding.
func checkEncoded(s string) error {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return errors.New("% is not followed by two hex digits")
			}
			i += 2
			continue
		}
		if !isAlnum(c) && !strings.ContainsRune("-._~!$&'()*+,;=:@/?", rune(c)) {
			return fmt.Errorf("character %q must be percent-encoded", rune(c))
		}
	}
	return nil
}

// String returns the canonical text of u. The plugin "resource" is left out.
func (u URI) String() string {
	var b strings.Builder
	b.WriteString("kbs")
	if p := u.plugin(); p != DefaultPlugin {
		b.WriteString("+" + p)
	}
	b.WriteString("://" + u.Authority + "/" + u.Path)
	if u.Query != "" {
		b.WriteString("?" + u.Query)
	}
	return b.String()
}

// RequestPath returns the path and query under which a Key Broker Service
// serves u, beginning with "/kbs/v0/". It is already escaped.
func (u URI) RequestPath() string {
	p := apiPrefix + u.plugin() + "/" + u.Path
	if u.Query != "" {
		p += "?" + u.Query
	}
	return p
}

func (u URI) plugin() string {
	if u.Plugin == "" {
		return DefaultPlugin
	}
	return u.Plugin
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// shorten keeps error texts readable when the input is hostile.
func shorten(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
