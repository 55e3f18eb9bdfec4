// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/imgcrypt/v2/images/encryption"
	"github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// containerdDownloads is how many layers containerd downloads at a time unless
// it is told otherwise.
const containerdDownloads = 3

// pullWithContainerd pulls with containerd's own parts, as its pull does: blobs
// go to its content store, three at a time, and a layer that is there is
// decrypted by imgcrypt, decompressed, hashed and applied; one after the other,
// or, as with max_concurrent_unpacks, all side by side. imgcrypt is called in
// this process, which is faster than the program that containerd starts.
func pullWithContainerd(ctx context.Context, j job, parallel bool) (sample, error) {
	key, err := os.ReadFile(filepath.Join(j.Cache, "key.pem"))
	if err != nil {
		return sample{}, err
	}
	crypto, err := config.DecryptWithPrivKeys([][]byte{key}, [][]byte{nil})
	if err != nil {
		return sample{}, err
	}
	p := &containerdPull{dir: j.Dir, dc: crypto.DecryptConfig, parallel: parallel}
	if p.store, err = local.NewStore(filepath.Join(p.dir, "content")); err != nil {
		return sample{}, err
	}
	s, err := measure(func() error { return p.pull(ctx, reference(j.Registry, j.Images[0])) })
	for i := 0; j.Tree && err == nil && i < p.layers; i++ {
		var tree string
		tree, err = treeDigest(p.layer(i))
		s.Trees = append(s.Trees, tree)
	}
	return s, err
}

type containerdPull struct {
	dir      string
	dc       *config.DecryptConfig
	parallel bool
	store    content.Store
	layers   int
}

func (p *containerdPull) layer(i int) string { return filepath.Join(p.dir, "layer"+strconv.Itoa(i)) }

func (p *containerdPull) pull(ctx context.Context, ref string) error {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	fetch := remotes.FetchHandler(p.store, fetcher)
	var manifest ocispec.Manifest
	if err := p.fetchJSON(ctx, fetch, desc, &manifest); err != nil {
		return err
	}
	var image ocispec.Image
	if err := p.fetchJSON(ctx, fetch, manifest.Config, &image); err != nil {
		return err
	}
	p.layers = len(manifest.Layers)
	return p.unpack(ctx, fetch, manifest.Layers, image.RootFS.DiffIDs)
}

func (p *containerdPull) fetchJSON(ctx context.Context, fetch handlerFunc, desc ocispec.Descriptor, into any) error {
	if _, err := fetch(ctx, desc); err != nil {
		return err
	}
	b, err := content.ReadBlob(ctx, p.store, desc)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

type handlerFunc = func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error)

// unpack begins beside the downloads, as soon as a layer is there.
func (p *containerdPull) unpack(ctx context.Context, fetch handlerFunc, layers []ocispec.Descriptor, diffIDs []digest.Digest) error {
	fetched := make([]chan struct{}, len(layers))
	for i := range fetched {
		fetched[i] = make(chan struct{})
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		var downloads errgroup.Group
		downloads.SetLimit(containerdDownloads)
		for i, layer := range layers {
			downloads.Go(func() error {
				_, err := fetch(ctx, layer)
				if err == nil {
					close(fetched[i])
				}
				return err
			})
		}
		return downloads.Wait()
	})
	one := func(i int) error {
		select {
		case <-fetched[i]:
			return p.apply(ctx, i, layers[i], diffIDs[i])
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if p.parallel {
		for i := range layers {
			group.Go(func() error { return one(i) })
		}
		return group.Wait()
	}
	group.Go(func() error {
		for i := range layers {
			if err := one(i); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// apply is containerd's applier with a stream processor for encrypted layers.
func (p *containerdPull) apply(ctx context.Context, i int, desc ocispec.Descriptor, diffID digest.Digest) error {
	if err := os.Mkdir(p.layer(i), 0o755); err != nil {
		return err
	}
	at, err := p.store.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer at.Close()
	r := content.NewReader(at)
	if layercrypt.IsEncrypted(desc.MediaType) {
		if _, r, _, err = encryption.DecryptLayer(p.dc, r, desc, false); err != nil {
			return err
		}
	}
	decompressed, err := compression.DecompressStream(r)
	if err != nil {
		return err
	}
	defer decompressed.Close()
	hash := sha256.New()
	tar := io.TeeReader(decompressed, hash)
	opts := []archive.ApplyOpt{archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)}
	if !p.parallel && i > 0 {
		var parents []string
		for n := range i {
			parents = append(parents, p.layer(n))
		}
		slices.Reverse(parents)
		opts = append(opts, archive.WithParents(parents))
	}
	if _, err := archive.Apply(ctx, p.layer(i), tar, opts...); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return err
	}
	if got := hexDigest(hash); got != diffID.String() {
		return fmt.Errorf("layer %d: diff id is %s, the config says %s", i, got, diffID)
	}
	return nil
}
