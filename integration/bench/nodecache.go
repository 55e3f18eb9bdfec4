// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/integration/testbed"
)

// nodeGuests is how many guests of a node pull one image.
const nodeGuests = 16

// cachedImage is what they pull: four layers that hardly compress, as of models
// and archives, so that the network is most of the work.
func (b *bench) cachedImage() image {
	size, name := int(24e6), "node"
	if b.quick {
		size, name = 2e6, "small-node"
	}
	img := image{Name: name, Seed: 20000, Form: form{Quick: true}}
	for range 4 {
		img.Layers = append(img.Layers, shape{Prefix: "data", Files: 16, Bytes: size, Noise: 100, PerDir: 16})
	}
	return img
}

// nodeLinks are the networks between the registry and the node.
func nodeLinks() []nodeLink {
	return []nodeLink{{"1 Gbit/s, shared", "1gbit", 1e9 / 8}, {"loopback", "loopback", 0}}
}

type nodeLink struct {
	title, name string
	rate        int64 // bytes a second; 0 is no limit
}

// nodePull is what 16 guests took for one image.
type nodePull struct {
	wall float64 // seconds, from the first request to the last answer
	left int     // blobs that left the registry
	most int     // how often one blob did
}

// nodeCache has 16 real guests pull one image at the same time, with and without
// the node's cache, which is the real coffer-snapshotter's.
func (b *bench) nodeCache(ctx context.Context) error {
	img := b.cachedImage()
	manifest, _, err := b.cache.readImage(img.Name)
	if err != nil {
		return err
	}
	blobs, bytes := len(manifest.Layers)+1, manifest.Config.Size
	for _, l := range manifest.Layers {
		bytes += l.Size
	}
	t := table{
		Title: fmt.Sprintf("%d guests pull one image of %d blobs and %.0f MB at once: median of %d", nodeGuests, blobs, float64(bytes)/1e6, b.nodeRuns()),
		Head:  []string{"network to the registry", "blobs come from", "wall, s", "blobs that leave the registry"},
	}
	most := 0
	for _, l := range nodeLinks() {
		var walls [2]series
		var left [2]int
		for range b.nodeRuns() {
			for i, cached := range []bool{false, true} {
				p, err := b.pullOnNode(ctx, img.Name, l, cached)
				if err != nil {
					return err
				}
				b.say("%d guests, %s, cache %v: %.2f s, %d blobs", nodeGuests, l.title, cached, p.wall, p.left)
				walls[i], left[i] = append(walls[i], p.wall), max(left[i], p.left)
				if cached {
					most = max(most, p.most)
				}
			}
		}
		t.row(l.title, "the registry", spread(walls[0], "%.2f"), fmt.Sprint(left[0]))
		t.row(l.title, "the node's cache", spread(walls[1], "%.2f"), fmt.Sprint(left[1]))
		b.figure("cache_16_guests_over_none_"+l.name, walls[1].median()/walls[0].median(), "wall ratio", target{})
		b.figure("cache_blobs_left_registry_"+l.name, float64(left[1])/float64(blobs), "blobs for one of the image", atMost(1))
	}
	b.figure("cache_most_times_one_blob_left", float64(most), "times", atMost(1))
	b.tables = append(b.tables, t)
	return nil
}

func (b *bench) nodeRuns() int { return min(b.runs, 3) }

// pullOnNode starts all that a node has, anew, and pulls.
func (b *bench) pullOnNode(ctx context.Context, image string, l nodeLink, cached bool) (p nodePull, err error) {
	d, err := b.ground.fresh(ctx, diskBytes)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	tb, err := testbed.New(ctx, testbed.Options{Programs: b.programs})
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, tb.Close()) }()
	registry, err := startLinkedRegistry(ctx, b.cache, tb.RegistryHost, l.rate)
	if err != nil {
		return p, err
	}
	defer registry.stop()
	if err := startKBS(ctx, tb); err != nil {
		return p, err
	}
	n := node{bed: tb, disk: d.dir, registry: registry.addr}
	if cached {
		if err := n.startCache(ctx); err != nil {
			return p, err
		}
	}
	if err := n.startGuests(ctx); err != nil {
		return p, err
	}
	if p.wall, err = n.pull(ctx, b.cache, image); err != nil {
		return p, err
	}
	left, err := blobsLeft(ctx, registry.addr)
	for _, times := range left {
		p.left += times
		p.most = max(p.most, times)
	}
	return p, err
}

// node is a machine with guests, and perhaps a cache.
type node struct {
	bed      *testbed.Testbed
	disk     string // where all that is large goes
	registry string
	cache    string // URL; "" for none
	guests   []string
}

const nodeCacheConfig = `root = %q
address = %q
containerd_address = "/nonexistent"
guest_socket = "/nonexistent"
[cache]
address = %q
root = %q
registries = [%q]
[log]
level = "warn"
`

func (n *node) startCache(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	at := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	config := fmt.Sprintf(nodeCacheConfig, filepath.Join(n.disk, "snapshots"), n.bed.Path("s.sock"), at, filepath.Join(n.disk, "cache"), "http://"+n.registry)
	file := n.bed.Path("cache.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	n.cache = "http://" + at
	return n.bed.Extra("cache", "coffer-snapshotter", "-c", file).Start(ctx)
}

const nodeGuestConfig = `[sockets]
layer_puller = "%[1]s.sock"
cdh = "%[1]s-cdh.sock"
attestation_agent = "%[1]s-aa.sock"
[attester]
tee = "sample"
[kbs]
url = %[2]q
[image]
work_dir = %[3]q
[registry]
insecure = [%[4]q]
cache = %[5]q
[log]
level = "warn"
`

func (n *node) startGuests(ctx context.Context) error {
	var group errgroup.Group
	for i := range nodeGuests {
		name := fmt.Sprintf("g%d", i)
		at := n.bed.Path(name)
		config := fmt.Sprintf(nodeGuestConfig, at, n.bed.KBSURL, filepath.Join(n.disk, name), n.registry, n.cache)
		if err := os.WriteFile(at+".toml", []byte(config), 0o600); err != nil {
			return errors.Join(err, group.Wait())
		}
		n.guests = append(n.guests, at+".sock")
		guest := n.bed.Extra(name, "coffer-guest", "-c", at+".toml")
		group.Go(func() error { return guest.Start(ctx) })
	}
	return group.Wait()
}

// pull has all guests pull the image at the same time.
func (n *node) pull(ctx context.Context, c cache, image string) (wall float64, err error) {
	manifest, chain, err := c.top(image)
	if err != nil {
		return 0, err
	}
	clients := make([]*service.Client, len(n.guests))
	for i, socket := range n.guests {
		clients[i] = service.NewClient(socket)
		defer func() { _ = clients[i].Close() }()
	}
	var group errgroup.Group
	began := time.Now()
	for i, client := range clients {
		group.Go(func() error {
			_, _, _, err := client.PullLayer(ctx, reference(n.registry, image), manifest, chain)
			if err != nil {
				return fmt.Errorf("guest %d: %w", i, err)
			}
			return nil
		})
	}
	err = group.Wait()
	return time.Since(began).Seconds(), err
}

// blobsLeft asks a registry how often each blob has left it.
func blobsLeft(ctx context.Context, host string) (left map[string]int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/left", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return left, json.NewDecoder(resp.Body).Decode(&left)
}
