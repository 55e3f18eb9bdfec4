// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	oras "oras.land/oras-go/v2/registry"

	"github.com/coffer-cc/coffer/imagepull/registry/conf"
)

const (
	defaultRegistry  = "docker.io"
	defaultNamespace = "library/"
	defaultTag       = "latest"
	maxReference     = 1024
)

// Reference names an image in a registry. At least one of Tag and Digest is
// set; where both are, Digest decides.
type Reference struct {
	// Registry is host or host:port, as the user wrote it ("docker.io", not
	// the machine that serves it).
	Registry   string
	Repository string
	Tag        string
	Digest     digest.Digest
}

// ParseReference reads host/repository[:tag][@digest]. As in every container
// tool a missing host means docker.io, a one-word repository there is in
// library/, and without tag and digest the tag is latest. Hosts are spelled in
// lower case. Errors are InvalidArgument.
func ParseReference(s string) (Reference, error) {
	ref, _, err := parseNamed(s)
	return ref, err
}

// parseNamed is ParseReference; short is the name without tag and digest where
// it has no registry.
func parseNamed(s string) (ref Reference, short string, err error) {
	ref, short, err = parseReference(s)
	if err != nil {
		return Reference{}, "", fmt.Errorf("image reference %q: %w: write it as host/repository:tag or host/repository@sha256:…: %w", clip(s, 200), err, errdefs.ErrInvalidArgument)
	}
	return ref, short, nil
}

func parseReference(s string) (ref Reference, short string, err error) {
	if len(s) > maxReference {
		return ref, "", fmt.Errorf("longer than %d bytes", maxReference)
	}
	name, dgst, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		ref.Digest = digest.Digest(dgst)
		if err := checkDigest(ref.Digest); err != nil {
			return ref, "", err
		}
	}
	// A colon after the last slash starts a tag; one before it is a port.
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, ref.Tag = name[:i], name[i+1:]
		if ref.Tag == "" {
			return ref, "", fmt.Errorf("empty tag")
		}
	}
	host, rest, ok := strings.Cut(name, "/")
	if ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		ref.Registry, ref.Repository = strings.ToLower(host), rest
	} else {
		ref.Registry, ref.Repository, short = defaultRegistry, name, name
	}
	if ref.Registry == "index.docker.io" {
		ref.Registry = defaultRegistry
	}
	if ref.Registry == defaultRegistry && !strings.Contains(ref.Repository, "/") {
		ref.Repository = defaultNamespace + ref.Repository
	}
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = defaultTag
	}
	return ref, short, ref.check()
}

func (r Reference) check() error {
	o := oras.Reference{Registry: r.Registry, Repository: r.Repository, Reference: r.Tag}
	if !conf.ValidHost(r.Registry) {
		return fmt.Errorf("invalid registry host %q", r.Registry)
	}
	if err := o.ValidateRepository(); err != nil {
		return fmt.Errorf("invalid repository %q", r.Repository)
	}
	if r.Tag != "" && o.ValidateReferenceAsTag() != nil {
		return fmt.Errorf("invalid tag %q", r.Tag)
	}
	return nil
}

// Name is the repository with its registry: what credentials, error texts and
// blobs are about.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the canonical spelling; ParseReference reads it back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// WithDigest is the same image by digest; the tag is dropped, since it may
// have moved on.
func (r Reference) WithDigest(d digest.Digest) Reference {
	r.Tag, r.Digest = "", d
	return r
}

// checkDigest accepts what the pull can verify: SHA-256.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", clip(d.String(), 100), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest algorithm %s: only sha256 is supported", d.Algorithm())
	}
	return nil
}

// clip shortens text that came from outside for use in an error.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
