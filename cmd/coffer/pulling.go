// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/policy"
	events "github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/publish"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/registry/conf"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/timeline"
)

// scratchDir has the writable layers of bundles, below the store's root.
const scratchDir = "scratch"

// pulling is a puller of its own with all it needs.
type pulling struct {
	recorder *timeline.Recorder
	registry *rememberingRegistry
	layers   *store.Store
	puller   *imagepull.Puller
	bundle   string
	closers  []func() error // to be called in reverse order
}

// newPulling wires everything up. It asks nobody yet. On an error nothing stays
// behind.
func (p *process) newPulling(ctx context.Context, flags *pullFlags, ref registry.Reference, shown func(imagepull.Event)) (_ *pulling, err error) {
	pl := &pulling{recorder: &timeline.Recorder{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, pl.close())
		}
	}()
	options, err := flags.registryOptions(p.getenv, ref)
	if err != nil {
		return nil, err
	}
	client, err := registry.NewClient(options)
	if err != nil {
		return nil, err
	}
	pl.registry = &rememberingRegistry{Client: client}
	pl.closers = append(pl.closers, func() error { client.Close(); return nil })
	keys, err := p.newKeySource(&flags.keys, pl.recorder)
	if err != nil {
		return nil, err
	}
	pl.closers = append(pl.closers, keys.close)
	opts := imagepull.Options{
		MaxDownloads:       flags.maxDownloads,
		VerifyBeforeUnpack: flags.verifyFirst,
		Progress: func(e imagepull.Event) {
			pl.recorder.Record(e)
			shown(e)
		},
	}
	if flags.policy != "" {
		if opts.Policy, err = newImagePolicy(ctx, flags, client, keys); err != nil {
			return nil, err
		}
	}
	return pl, pl.open(flags.root, keys, opts)
}

// open opens the store and makes its puller.
func (pl *pulling) open(root string, keys imagepull.KeyUnwrapper, opts imagepull.Options) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	if pl.layers, err = store.Open(root, store.Options{}); err != nil {
		return err
	}
	pl.closers = append(pl.closers, pl.layers.Close)
	opts.Scratch = filepath.Join(root, scratchDir)
	pl.puller = imagepull.NewPuller(pl.registry, keys, pl.layers, opts)
	pl.closers = append(pl.closers, func() error { pl.puller.Close(); return nil })
	return pl.puller.Sweep()
}

// close undoes newPulling, last part first. What was pulled stays.
func (pl *pulling) close() (failed error) {
	for _, f := range slices.Backward(pl.closers) {
		failed = errors.Join(failed, f())
	}
	pl.closers = nil
	return failed
}

// registryOptions turns the flags into what the registry client needs.
func (f *pullFlags) registryOptions(getenv func(string) string, ref registry.Reference) (registry.Options, error) {
	access, err := f.registry.access(getenv)
	if err != nil {
		return registry.Options{}, err
	}
	options := registry.Options{Insecure: f.registry.plainHTTP, Proxy: registry.Proxy{FromEnvironment: true}, FindIndex: true}
	if access.PlainHTTP(ref.Registry) {
		options.Insecure = append(slices.Clone(options.Insecure), ref.Registry)
	}
	if options.Credentials, err = f.registry.logins(getenv); err != nil {
		return options, err
	}
	if f.certsDir != "" {
		if options.TLS, err = registry.LoadCertsDir(f.certsDir); err != nil {
			return options, err
		}
	}
	if f.platform != "" {
		platform, err := publish.ParsePlatform(f.platform)
		if err != nil {
			return options, usageError{err}
		}
		options.Platform = *platform
	}
	if f.registriesConf != "" {
		b, err := os.ReadFile(f.registriesConf)
		if err != nil {
			return options, fmt.Errorf("--registries-conf: %w", err)
		}
		if options.Config, err = conf.Parse(b); err != nil {
			return options, fmt.Errorf("--registries-conf %s: %w", f.registriesConf, err)
		}
	}
	return options, nil
}

// rememberingRegistry keeps the image that was resolved, for the report.
type rememberingRegistry struct {
	*registry.Client

	mu    sync.Mutex
	image registry.Image
}

func (r *rememberingRegistry) Resolve(ctx context.Context, ref string, manifest digest.Digest) (registry.Image, error) {
	image, err := r.Client.Resolve(ctx, ref, manifest)
	if err == nil {
		r.mu.Lock()
		r.image = image
		r.mu.Unlock()
	}
	return image, err
}

// last is the image that was resolved, the zero value before.
func (r *rememberingRegistry) last() registry.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.image
}

// imagePolicy is a policy as the puller asks it.
type imagePolicy struct{ *policy.Verifier }

func (p imagePolicy) Verify(ctx context.Context, name string, manifest, index digest.Digest) error {
	return p.Verifier.Verify(ctx, policy.Image{Name: name, Manifest: manifest, Index: index})
}

// newImagePolicy reads a policy from a file, or from the key broker service when
// it is first asked.
func newImagePolicy(ctx context.Context, flags *pullFlags, src *registry.Client, keys *keySource) (imagepull.ImagePolicy, error) {
	var resources policy.ResourceGetter
	if keys.hub != nil {
		resources = keys.hub
	}
	loader, err := policy.NewLoader(documentURI(flags.policy), resources, policy.Refresh{})
	if err != nil {
		return nil, usagef("--policy: %w", err)
	}
	if !strings.Contains(flags.policy, "://") {
		if _, err := loader.Policy(ctx); err != nil {
			return nil, fmt.Errorf("--policy: %w", err)
		}
	}
	opts := policy.Options{HTTP: src.HTTP()}
	if flags.signatures != "" {
		stores, err := policy.NewLookasideLoader(documentURI(flags.signatures), resources, policy.Refresh{})
		if err != nil {
			return nil, usagef("--signatures: %w", err)
		}
		if !strings.Contains(flags.signatures, "://") {
			if _, err := stores.Lookaside(ctx); err != nil {
				return nil, fmt.Errorf("--signatures: %w", err)
			}
		}
		opts.Lookaside = stores
	}
	return imagePolicy{policy.NewVerifier(loader, src, resources, opts)}, nil
}

// documentURI makes a path absolute and leaves a URI as it is.
func documentURI(from string) string {
	if strings.Contains(from, "://") {
		return from
	}
	path, err := filepath.Abs(from)
	if err != nil {
		return from // there is no working directory; reading it says so
	}
	return path
}

// stagesOf are seconds by stage.
func stagesOf(spans []timeline.Span) map[events.Stage]float64 {
	seconds := make(map[events.Stage]float64)
	for stage, took := range timeline.Took(spans) {
		seconds[stage] = took.Seconds()
	}
	return seconds
}
