// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// The calls that are measured.
const (
	callPrepare = "Prepare"
	callMounts  = "Mounts"
	callCommit  = "Commit"
	callStat    = "Stat"
	callRemove  = "Remove"
	callLayer   = "an image layer"
	callWalk    = "Walk"
	callCleanup = "Cleanup"
)

func snapshotCalls() []string {
	return []string{callPrepare, callCommit, callMounts, callStat, callRemove, callLayer, callWalk, callCleanup}
}

const (
	containersPerImage = 8
	filesToCommit      = 8
	// rareEvery is after how many rounds what looks at all snapshots is called.
	rareEvery = 100
)

// stack is an image: the chain ids of its layers, the lowest first.
type stack []digest.Digest

// stacks are images of 5 to 10 layers, so many that they and their containers
// are n snapshots.
func stacks(n int) (list []stack) {
	for i := 0; n > 0; i++ {
		s := make(stack, min(5+i%6, n))
		for j := range s {
			s[j] = digest.FromString(fmt.Sprintf("image %d layer %d", i, j))
		}
		list = append(list, s)
		n -= len(s) + containersPerImage
	}
	return list
}

// contestant is a snapshotter that is being measured.
type contestant struct {
	*snapshotterProcess
	calls map[string][]float64 // ms, by kind of snapshotter and call
}

// snapshotsJob fills the snapshotters in j.Dir, unless they are full, and times
// calls to them in turn.
func snapshotsJob(ctx context.Context, j job) (s sample, err error) {
	s.Calls = make(map[string][]float64)
	var all []*contestant
	for _, kind := range []string{cofferSnapshotter, overlaySnapshotter} {
		p, err := startSnapshotter(ctx, kind, filepath.Join(j.Dir, kind))
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, p.stop()) }()
		all = append(all, &contestant{p, s.Calls})
	}
	images := stacks(j.Snapshots)
	for _, c := range all {
		if err := c.fill(ctx, images, j.Snapshots); err != nil {
			return s, fmt.Errorf("%s: %w", c.kind, err)
		}
	}
	flush, err := newFlushes(j.Dir)
	if err != nil {
		return s, err
	}
	defer flush.file.Close()
	r := rand.New(rand.NewPCG(uint64(j.Snapshots), 7))
	for i := range j.Rounds {
		ms, err := flush.time()
		if err != nil {
			return s, err
		}
		s.Calls[callFlush] = append(s.Calls[callFlush], ms)
		image := images[r.IntN(len(images))]
		for k := range all {
			c := all[(i+k)%len(all)]
			if err := c.round(ctx, i, image); err != nil {
				return s, fmt.Errorf("%s: %w", c.kind, err)
			}
		}
	}
	return s, nil
}

// fill makes n snapshots: images, as containerd pulls them, and containers.
func (c *contestant) fill(ctx context.Context, images []stack, n int) error {
	if _, err := c.Stat(ctx, c.name(images[0][0])); err == nil {
		return nil // it was filled before
	}
	for i, image := range images {
		parent := ""
		for _, chain := range image {
			if err := c.layer(ctx, chain, parent); err != nil {
				return err
			}
			parent = c.name(chain)
			n--
		}
		for k := 0; k < containersPerImage && n > 0; k++ {
			if _, err := c.Prepare(ctx, fmt.Sprintf("k8s.io/1/%d-%d", i, k), parent); err != nil {
				return err
			}
			n--
		}
	}
	return nil
}

// name is that of the snapshot of an image's layer.
func (c *contestant) name(chain digest.Digest) string {
	if c.kind == cofferSnapshotter {
		return chain.String()
	}
	return "k8s.io/1/" + chain.String()
}

// layer adds a layer as containerd does when it pulls an image, and looks for it
// afterwards: coffer has it pulled and commits it, for overlayfs containerd would
// fill it before the commit.
func (c *contestant) layer(ctx context.Context, chain digest.Digest, parent string) error {
	key := "k8s.io/1/extract-1-x " + chain.String()
	_, err := c.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:                chain.String(),
		snapshotters.TargetRefLabel:               "registry.example/team/app:v1",
		snapshotters.TargetManifestDigestLabel:    digest.FromString("manifest").String(),
		snapshotters.TargetLayerDigestLabel:       digest.FromString("blob of " + chain.String()).String(),
		"containerd.io/snapshot/cri.image-layers": digest.FromString("blob of " + chain.String()).String(),
	}))
	switch {
	case c.kind != cofferSnapshotter && err == nil:
		err = c.Commit(ctx, c.name(chain), key)
	case c.kind == cofferSnapshotter && errdefs.IsAlreadyExists(err):
		err = nil
	case err == nil:
		err = fmt.Errorf("layer %s is not pulled", chain)
	}
	if err == nil {
		_, err = c.Stat(ctx, c.name(chain))
	}
	return err
}

// timed does a call and notes how long it took.
func (c *contestant) timed(call string, do func() error) error {
	began := time.Now()
	err := do()
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	key := callKey(c.kind, call)
	c.calls[key] = append(c.calls[key], float64(took)/float64(time.Millisecond))
	return nil
}

func callKey(kind, call string) string { return kind + " " + call }

// round makes and removes a container, a snapshot of a build and a layer on an
// image.
func (c *contestant) round(ctx context.Context, i int, image stack) error {
	parent := c.name(image[len(image)-1])
	container, build := fmt.Sprintf("k8s.io/2/%d", i), fmt.Sprintf("k8s.io/2/build-%d", i)
	chain := digest.FromString(fmt.Sprintf("round %d", i))
	var mounts []mount.Mount
	prepare := func(key string) func() error {
		return func() (err error) {
			mounts, err = c.Prepare(ctx, key, parent)
			return err
		}
	}
	remove := func(key string) func() error { return func() error { return c.Remove(ctx, key) } }
	type step struct {
		call string
		do   func() error
	}
	steps := []step{
		{callPrepare, prepare(container)},
		{callMounts, func() error { _, err := c.Mounts(ctx, container); return err }},
		{callStat, func() error { _, err := c.Stat(ctx, container); return err }},
		{callPrepare, prepare(build)},
		{"", func() error { return writeUpper(mounts) }},
		{callCommit, func() error { return c.Commit(ctx, build+"-done", build) }},
		{callRemove, remove(container)},
		{callRemove, remove(build + "-done")},
		{callLayer, func() error { return c.layer(ctx, chain, parent) }},
		{callRemove, remove(c.name(chain))},
	}
	if i%rareEvery == rareEvery-1 {
		steps = append(steps,
			step{callWalk, func() error {
				return c.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
			}},
			step{callCleanup, func() error {
				cleaner, ok := c.Snapshotter.(snapshots.Cleaner)
				if !ok {
					return errors.New("it cannot")
				}
				return cleaner.Cleanup(ctx)
			}},
		)
	}
	for _, s := range steps {
		var err error
		if s.call == "" {
			err = s.do()
		} else {
			err = c.timed(s.call, s.do)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeUpper puts files into the upper directory of a new snapshot.
func writeUpper(mounts []mount.Mount) error {
	for _, o := range mounts[len(mounts)-1].Options {
		dir, ok := strings.CutPrefix(o, "upperdir=")
		if !ok {
			continue
		}
		for i := range filesToCommit {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("content"), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("a snapshot has no upper directory")
}
