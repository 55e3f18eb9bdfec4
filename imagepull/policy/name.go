// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// name is a Docker reference in its full form.
type name struct {
	repository string // host[:port]/path
	path       string // repository without the host
	tag        string
	digest     digest.Digest
}

// parseName reads a reference as every container tool does: a missing host is
// docker.io. A tag is not added. Hosts are spelled in lower case, as the
// registry's client does.
func parseName(s string) (name, error) {
	if len(s) > 1024 {
		return name{}, errors.New("longer than 1024 bytes")
	}
	if host, rest, ok := strings.Cut(s, "/"); ok && strings.ContainsAny(host, ".:") {
		s = strings.ToLower(host) + "/" + rest
	}
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return name{}, fmt.Errorf("not an image reference: %w", err)
	}
	n := name{repository: ref.Name(), path: reference.Path(ref)}
	if t, ok := ref.(reference.Tagged); ok {
		n.tag = t.Tag()
	}
	if d, ok := ref.(reference.Digested); ok {
		n.digest = d.Digest()
	}
	return n, nil
}

func (n name) String() string {
	s := n.repository
	if n.tag != "" {
		s += ":" + n.tag
	}
	if n.digest != "" {
		s += "@" + n.digest.String()
	}
	return s
}

// bare reports whether n names a repository and no image in it.
func (n name) bare() bool { return n.tag == "" && n.digest == "" }

// scopes are the scopes that may be about the image, the most particular
// first: reference, repository, its parents, host, parent domains, any.
func (n name) scopes() []string {
	var out []string
	n.repository = withoutHTTPS(n.repository)
	if n.digest != "" && n.tag != "" {
		out = append(out, n.String())
	}
	if n.digest != "" {
		out = append(out, n.repository+"@"+n.digest.String())
	}
	if n.tag != "" {
		out = append(out, n.repository+":"+n.tag)
	}
	s := n.repository
	for {
		out = append(out, s)
		i := strings.LastIndexByte(s, '/')
		if i < 0 {
			break
		}
		s = s[:i]
	}
	host, _, _ := strings.Cut(s, ":")
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			break
		}
		out = append(out, "*."+parent)
		host = parent
	}
	return append(out, "")
}

// withoutHTTPS leaves out the port that registries have anyway: whoever names
// it means the same registry.
func withoutHTTPS(s string) string {
	host, rest, below := strings.Cut(s, "/")
	host = strings.TrimSuffix(host, ":443")
	if below {
		host += "/"
	}
	return host + rest
}
