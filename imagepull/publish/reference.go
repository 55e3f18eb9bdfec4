// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
)

const (
	layoutPrefix = "oci:"
	dockerHub    = "docker.io"
)

// Reference names an image: in a registry, or in an OCI layout folder when
// Layout is set. At most one of Tag and Digest is set; only a layout allows
// neither.
type Reference struct {
	Layout     string // folder of an OCI layout
	Registry   string // host[:port]
	Repository string
	Tag        string
	Digest     digest.Digest
}

// ParseReference reads REGISTRY/REPO:TAG, REGISTRY/REPO@DIGEST, oci:DIR,
// oci:DIR:TAG or oci:DIR@DIGEST. A tag beside a digest is dropped, as other
// tools do. Errors are of class InvalidArgument and show the right form.
func ParseReference(s string) (Reference, error) {
	if rest, ok := strings.CutPrefix(s, layoutPrefix); ok {
		return parseLayout(s, rest)
	}
	if name, ok := strings.CutPrefix(s, "docker://"); ok {
		return Reference{}, invalid("reference %q: leave out docker:// and write %s", s, name)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return Reference{}, invalid("reference %q: unknown scheme %q: write REGISTRY/REPO:TAG or oci:DIR:TAG", s, scheme)
	}
	return parseRegistry(s)
}

func parseLayout(s, rest string) (Reference, error) {
	var pinned string
	hasDigest := false
	if i := strings.LastIndex(rest, "@sha"); i >= 0 && strings.Contains(rest[i:], ":") {
		rest, pinned, hasDigest = rest[:i], rest[i+1:], true
	}
	dir, tag, hasTag := strings.Cut(rest, ":")
	ref := Reference{Layout: dir}
	switch {
	case dir == "":
		return Reference{}, invalid("reference %q names no folder: write oci:DIR or oci:DIR:TAG", s)
	case strings.ContainsRune(dir, 0):
		return Reference{}, invalid("reference %q: the folder holds a NUL byte", s)
	case hasDigest:
		d, err := digest.Parse(pinned)
		if err != nil {
			return Reference{}, invalid("reference %q: %q is no digest: write sha256: and 64 hexadecimal digits", s, pinned)
		}
		ref.Digest = d
	case hasTag && !validLayoutTag(tag):
		return Reference{}, invalid("reference %q: %q is no tag: letters, digits and ._-/ only", s, tag)
	case hasTag:
		ref.Tag = tag
	}
	return ref, nil
}

func parseRegistry(s string) (Reference, error) {
	host, name, ok := strings.Cut(s, "/")
	if host == "" && ok || host == "." || host == ".." {
		return Reference{}, invalid("reference %q names no registry: for an OCI layout write %s%s", s, layoutPrefix, s)
	}
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return Reference{}, invalid("reference %q names no registry: write REGISTRY/REPO:TAG, as in %s, or oci:DIR:TAG for an OCI layout",
			s, suggest(s))
	}
	if host == dockerHub && name != "" && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	parsed, err := registry.ParseReference(host + "/" + name)
	if err != nil {
		return Reference{}, invalid("reference %q: %w: write REGISTRY/REPO:TAG or REGISTRY/REPO@sha256:DIGEST in small letters",
			s, trimClass(err))
	}
	ref := Reference{Registry: parsed.Registry, Repository: parsed.Repository}
	switch {
	case parsed.Reference == "":
		return Reference{}, invalid("reference %q has no tag and no digest: write %s:latest or another tag", s, s)
	case strings.Contains(parsed.Reference, ":"):
		ref.Digest = digest.Digest(parsed.Reference)
	default:
		ref.Tag = parsed.Reference
	}
	return ref, nil
}

// String returns the form that ParseReference reads.
func (r Reference) String() string {
	name := r.Registry + "/" + r.Repository
	if r.Layout != "" {
		name = layoutPrefix + r.Layout
	}
	switch {
	case r.Digest != "":
		return name + "@" + r.Digest.String()
	case r.Tag != "":
		return name + ":" + r.Tag
	}
	return name
}

// Pin returns the reference of one digest in the same place.
func (r Reference) Pin(d digest.Digest) Reference {
	r.Tag, r.Digest = "", d
	return r
}

// Loopback reports whether a registry, host[:port], runs on this machine.
func Loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// suggest completes a short name the way Docker's tools read it.
func suggest(s string) string {
	name := strings.Trim(s, "/")
	switch {
	case name == "":
		return dockerHub + "/library/alpine:3"
	case !strings.Contains(name, "/"):
		return dockerHub + "/library/" + name
	}
	return dockerHub + "/" + name
}

// validLayoutTag accepts the names that other tools write into a layout's
// index: the image specification allows more than a registry's tag.
func validLayoutTag(tag string) bool {
	for _, c := range tag {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.ContainsRune("._-/+:", c):
		default:
			return false
		}
	}
	return tag != ""
}

// invalid returns an error of class InvalidArgument whose text is only format.
func invalid(format string, args ...any) error {
	return classed{fmt.Errorf(format, args...), errdefs.ErrInvalidArgument}
}

// classed gives an error a class without adding the class's name to its text.
type classed struct {
	error
	class error
}

func (c classed) Unwrap() []error { return []error{c.error, c.class} }

// trimClass takes oras's "invalid reference: " off a text that says so already.
func trimClass(err error) error {
	if errors.Is(err, errdef.ErrInvalidReference) {
		return errors.New(strings.TrimPrefix(err.Error(), errdef.ErrInvalidReference.Error()+": "))
	}
	return err
}
