// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The parts of a run.
const (
	partPull        = "pull"
	partMemory      = "memory"
	partAllocations = "allocations"
	partScale       = "scale"
	partSnapshots   = "snapshots"
	partCache       = "cache"
)

func parts() []string {
	return []string{partPull, partMemory, partAllocations, partScale, partSnapshots, partCache}
}

const (
	// groundBytes is the tmpfs that all file systems are in; it takes only
	// what is written.
	groundBytes = 6 << 30
	diskBytes   = 4 << 30
)

// bench is one run.
type bench struct {
	settings
	out      io.Writer
	began    time.Time
	cache    cache
	ground   *ground
	registry *registryProcess
	host     string // what the figures are of

	figures []figure
	tables  []table
	curves  []curve
}

// measureAll does all parts that are wanted and cleans up, whatever happens.
func measureAll(ctx context.Context, c settings, out io.Writer) (_ []figure, err error) {
	b := &bench{settings: c, out: out, began: time.Now(), host: host()}
	b.say("%s", b.host)
	opened, release, err := openCache(filepath.Join(c.root, ".cache", "bench"))
	if release != nil {
		defer func() { err = errors.Join(err, release()) }()
	}
	if err != nil {
		return nil, err
	}
	b.cache = opened
	if _, _, err := b.cache.keys(); err != nil { // before many want them at once
		return nil, err
	}
	if err := b.generate(ctx); err != nil {
		return nil, err
	}
	if err := b.warm(ctx); err != nil {
		return nil, err
	}
	if b.registry, err = startRegistry(ctx, b.cache, "127.0.0.1:0"); err != nil {
		return nil, err
	}
	defer b.registry.stop()
	if b.ground, err = newGround(filepath.Join(c.root, ".cache", "bench", "ground"), groundBytes); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.ground.close()) }()
	for _, p := range []struct {
		name string
		do   func(context.Context) error
	}{
		{partPull, b.pulls}, {partMemory, b.memory}, {partAllocations, b.allocations}, {partScale, b.scaling},
		{partSnapshots, b.snapshotCost}, {partCache, b.nodeCache},
	} {
		if !b.wants(p.name) {
			continue
		}
		if err := p.do(ctx); err != nil {
			return nil, err
		}
	}
	return b.figures, b.write()
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%4.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *bench) figure(name string, value float64, unit string, t target) {
	b.figures = append(b.figures, newFigure(name, value, unit, t))
}

// generate makes the images in processes of their own, a few at a time: what
// they take of memory must not count for anybody.
func (b *bench) generate(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	begun := make(map[string]bool)
	for _, img := range b.images() {
		known, err := b.cache.find(img.Name)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		if known != "" || begun[img.Name] {
			continue
		}
		begun[img.Name] = true
		group.Go(func() error {
			b.say("generating image %s (once)", img.Name)
			_, err := runChild(ctx, job{Kind: "generate", Cache: b.cache.dir, Generate: &img})
			return err
		})
	}
	return group.Wait()
}

// warm reads all images once, so that nobody waits for the disk.
func (b *bench) warm(ctx context.Context) error {
	read := func(name string) error {
		manifest, _, err := b.cache.readImage(name)
		if err != nil {
			return err
		}
		for _, layer := range manifest.Layers {
			f, err := os.Open(b.cache.blob(layer.Digest))
			if err != nil {
				return err
			}
			_, err = io.Copy(io.MultiWriter(io.Discard, stopper{ctx}), f)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		return nil
	}
	for _, img := range b.images() {
		err := read(img.Name)
		if err == nil && img.Plain {
			err = read(plainName(img.Name))
		}
		if err != nil {
			return fmt.Errorf("image %s in %s: %w; remove that folder", img.Name, b.cache.dir, err)
		}
	}
	return nil
}

// images are those that the wanted parts need.
func (b *bench) images() []image {
	var all []image
	if b.wants(partPull) || b.wants(partMemory) {
		all = append(all, b.realImages()...)
	}
	if b.wants(partMemory) {
		all = append(all, sizedImage(b.largest()))
	}
	if b.wants(partAllocations) {
		for _, mb := range b.allocationSizes() {
			all = append(all, sizedImage(mb))
		}
	}
	if b.wants(partCache) {
		all = append(all, b.cachedImage())
	}
	if b.wants(partScale) {
		for _, s := range b.scales() {
			all = append(all, s.images...)
		}
	}
	return all
}

// sizedImage is an image of one layer.
func sizedImage(mb int) image {
	return image{Name: fmt.Sprintf("one-layer-%dmb", mb), Layers: []shape{bulk(mb * 1e6)}, Seed: 100, Form: form{Quick: true}}
}

// onDisk does a job on a new file system.
func (b *bench) onDisk(ctx context.Context, j job) (s sample, err error) {
	d, err := b.ground.fresh(ctx, diskBytes)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	j.Dir = d.dir
	return b.run(ctx, j)
}

// run does a job.
func (b *bench) run(ctx context.Context, j job) (sample, error) {
	j.Cache, j.Registry = b.cache.dir, b.registry.addr
	return runChild(ctx, j)
}

// write prints the tables and writes all files.
func (b *bench) write() error {
	tables := append([]table{figureTable(b.figures)}, b.tables...)
	text := b.host + "\n\n" + join(tables)
	fmt.Fprintf(b.out, "\n%s\n", text)
	dir := filepath.Join(b.root, ".bench")
	if b.quick { // no figures to keep
		dir = filepath.Join(dir, "quick")
	}
	if err := saveFigures(filepath.Join(dir, "bench.json"), b.figures); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, "bench.md"), []byte(text)); err != nil {
		return err
	}
	if len(b.curves) > 0 {
		if err := replaceFile(filepath.Join(dir, "scaling.svg"), []byte(plotSVG(b.curves))); err != nil {
			return err
		}
	}
	if !b.update {
		return nil
	}
	docs := filepath.Join(b.root, "docs")
	return errors.Join(
		updateDocument(filepath.Join(docs, "performance.md"), text),
		replaceFile(filepath.Join(docs, "performance.svg"), []byte(plotSVG(b.curves))),
	)
}

// host says what the figures are of.
func host() string {
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, found := strings.Cut(string(info), "model name"); found {
			line, _, _ := strings.Cut(rest, "\n")
			model = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), ":"))
		}
	}
	kernel := ""
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = ", Linux " + unix.ByteSliceToString(u.Release[:])
	}
	load := ""
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(b), " ")
	}
	return fmt.Sprintf("%d × %s%s, %s, %s; load average before the run %s.",
		runtime.NumCPU(), model, kernel, runtime.Version(), time.Now().UTC().Format(time.DateOnly), load)
}
