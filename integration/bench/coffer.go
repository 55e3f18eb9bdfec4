// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// localKeys is a key broker that is already in the process.
type localKeys struct{}

func (localKeys) GetResource(_ context.Context, uri string) ([]byte, error) {
	if uri != kekURI {
		return nil, fmt.Errorf("there is no %s", uri)
	}
	return kek(), nil
}

// guest is the puller as coffer-guest wires it, with a key broker at hand.
type guest struct {
	client *registry.Client
	hub    *cdh.Hub
	store  *store.Store
	puller *imagepull.Puller
	stop   func() // the store's background work
}

func newGuest(ctx context.Context, dir, host string, verifyFirst bool) (*guest, error) {
	// As coffer-guest sets them.
	imagepull.BoundGarbage()
	client, err := registry.NewClient(registry.Options{Insecure: []string{host}})
	if err != nil {
		return nil, err
	}
	g := &guest{client: client, hub: cdh.NewHub(localKeys{}, cdh.Options{})}
	if g.store, err = store.Open(filepath.Join(dir, "store"), store.Options{}); err != nil {
		return nil, err
	}
	g.puller = imagepull.NewPuller(client, g.hub, g.store, imagepull.Options{
		Scratch: filepath.Join(dir, "scratch"), VerifyBeforeUnpack: verifyFirst,
	})
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.store.Run(ctx)
	}()
	g.stop = func() { cancel(); <-ended }
	return g, nil
}

func (g *guest) close() error {
	g.puller.Close()
	g.stop()
	g.hub.Close()
	g.client.Close()
	return g.store.Close()
}

// pullWithCoffer pulls with coffer's puller. What the daemon does once, at its
// start, does not count, nor does the flush of the store at the end.
func pullWithCoffer(ctx context.Context, j job) (sample, error) { return pullAsGuest(ctx, j, false) }

// pullVerifyFirst does so with verify_before_unpack.
func pullVerifyFirst(ctx context.Context, j job) (sample, error) { return pullAsGuest(ctx, j, true) }

func pullAsGuest(ctx context.Context, j job, verifyFirst bool) (s sample, err error) {
	g, err := newGuest(ctx, j.Dir, j.Registry, verifyFirst)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	c := cache{j.Cache}
	manifests, chains := make([]digest.Digest, len(j.Images)), make([]digest.Digest, len(j.Images))
	for i, name := range j.Images {
		if manifests[i], chains[i], err = c.top(name); err != nil {
			return s, err
		}
	}
	s, err = measure(func() error {
		var group errgroup.Group
		for i, name := range j.Images {
			group.Go(func() error {
				_, _, _, err := g.puller.PullLayer(ctx, reference(j.Registry, name), manifests[i], chains[i])
				return err
			})
		}
		return group.Wait()
	})
	for top := chains[0]; j.Tree && err == nil && top != ""; {
		layer, found := g.store.Layer(top)
		if !found {
			return s, errors.New("a layer is not in the store")
		}
		var tree string
		tree, err = treeDigest(layer.Path)
		s.Trees = append([]string{tree}, s.Trees...)
		top = layer.Parent
	}
	return s, err
}

func reference(registry, image string) string { return registry + "/bench/" + image + ":latest" }

// top is an image's manifest and its uppermost chain id.
func (c cache) top(image string) (manifest, chain digest.Digest, err error) {
	manifest, err = c.find(image)
	if err != nil {
		return "", "", err
	}
	_, config, err := c.readImage(image)
	if err != nil {
		return "", "", err
	}
	for _, diff := range config.RootFS.DiffIDs {
		if chain == "" {
			chain = diff
			continue
		}
		chain = digest.FromString(chain.String() + " " + diff.String())
	}
	return manifest, chain, nil
}
