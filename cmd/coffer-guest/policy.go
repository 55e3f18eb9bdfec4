// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/document"
	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// verifier is the key owner's policy as the puller asks for it.
type verifier struct{ *policy.Verifier }

func (v verifier) Verify(ctx context.Context, name string, manifest, index digest.Digest) error {
	return v.Verifier.Verify(ctx, policy.Image{Name: name, Manifest: manifest, Index: index})
}

// refreshOf says how long what the configuration names by URI stays good.
func refreshOf(p PolicyConfig) document.Refresh {
	r := document.Refresh{Every: time.Duration(p.Refresh), MaxStale: time.Duration(p.MaxStale)}
	if r.MaxStale == 0 {
		r.MaxStale = -1 // to the package 0 is its default
	}
	return r
}

// imagePolicy is nil where every image may be used. Files and entries
// of the init-data are read, so that a bad one is an error at the start; resources of the KBS are not asked for yet.
func imagePolicy(ctx context.Context, conf Config, signatures *registry.Client, resources cdh.ResourceGetter, log *slog.Logger) (imagepull.ImagePolicy, error) {
	if conf.Policy.Image == "" {
		return nil, nil
	}
	refresh := refreshOf(conf.Policy)
	loader, err := policy.NewLoader(conf.Policy.Image, resources, refresh)
	if err != nil {
		return nil, fmt.Errorf("policy.image: %w", err)
	}
	if isLocal(conf.Policy.Image) {
		if _, err := loader.Policy(ctx); err != nil {
			return nil, fmt.Errorf("policy.image: %w", err)
		}
	}
	opts := policy.Options{Refresh: refresh, HTTP: signatures.HTTP(), Logger: log}
	if conf.Policy.Signatures != "" {
		stores, err := policy.NewLookasideLoader(conf.Policy.Signatures, resources, refresh)
		if err == nil && isLocal(conf.Policy.Signatures) {
			_, err = stores.Lookaside(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("policy.signatures: %w", err)
		}
		opts.Lookaside = stores
	}
	return verifier{policy.NewVerifier(loader, signatures, resources, opts)}, nil
}
