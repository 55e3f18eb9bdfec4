// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
)

// Lookaside says where simple signatures are stored: containers-registries.d.
// It is immutable and safe for concurrent use.
type Lookaside struct {
	fallback *url.URL            // nil if there is none
	scopes   map[string]*url.URL // a scope without a store is not in it
}

// wireStore is one entry. Staging stores are for writers, and attachments are
// looked for in any case.
type wireStore struct {
	Lookaside              string `yaml:"lookaside"`
	LookasideStaging       string `yaml:"lookaside-staging"`
	Sigstore               string `yaml:"sigstore"` // the older name
	SigstoreStaging        string `yaml:"sigstore-staging"`
	UseSigstoreAttachments *bool  `yaml:"use-sigstore-attachments"`
}

// ParseLookaside reads one registries.d YAML file. Stores are file:///… or
// https://…; anything else, and unknown members, are InvalidArgument errors.
func ParseLookaside(b []byte) (*Lookaside, error) {
	l, err := parseLookaside(b)
	if err != nil {
		return nil, fmt.Errorf("image policy: signature stores: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return l, nil
}

func parseLookaside(b []byte) (*Lookaside, error) {
	if len(b) > maxDocument {
		return nil, fmt.Errorf("longer than %d bytes", maxDocument)
	}
	var w struct {
		Default wireStore            `yaml:"default-docker"`
		Docker  map[string]wireStore `yaml:"docker"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&w); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second YAML document follows")
	}
	l := &Lookaside{scopes: map[string]*url.URL{}}
	var err error
	if l.fallback, err = w.Default.url(); err != nil {
		return nil, fmt.Errorf("default-docker: %w", err)
	}
	for scope, s := range w.Docker {
		if err := checkScope(scope); err != nil || scope == "" {
			return nil, fmt.Errorf("docker: %q: %w", clip(scope, 200), errors.Join(err, errors.New("not a scope")))
		}
		u, err := s.url()
		if err != nil {
			return nil, fmt.Errorf("docker: %q: %w", clip(scope, 200), err)
		}
		if scope = withoutHTTPS(scope); u != nil {
			if l.scopes[scope] != nil {
				return nil, fmt.Errorf("docker: %q: given twice, with the port of HTTPS and without", clip(scope, 200))
			}
			l.scopes[scope] = u
		}
	}
	return l, nil
}

func (w wireStore) url() (*url.URL, error) {
	s := w.Lookaside
	if s == "" {
		s = w.Sigstore
	}
	if s == "" {
		return nil, nil //nolint:nilnil // no store is a valid entry
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("the store is not a URL")
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return nil, errors.New("a store's URL has neither user nor query nor fragment")
	case u.Scheme == "file" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return u, nil
	case u.Scheme == "https" && u.Host != "":
		return u, nil
	}
	return nil, fmt.Errorf("the store %q is neither file:///… nor https://…", clip(s, 200))
}

// find returns the base of the store for an image, nil if there is none.
func (l *Lookaside) find(n name) *url.URL {
	for _, scope := range n.scopes() {
		if u, ok := l.scopes[scope]; ok {
			return u
		}
	}
	return l.fallback
}

// Lookaside returns l itself: a configuration that does not change is its own
// source.
func (l *Lookaside) Lookaside(context.Context) (*Lookaside, error) { return l, nil }
