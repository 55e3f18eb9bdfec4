// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
)

// The image that all contenders pull.
const (
	gzipImage = "real-gzip"
	zstdImage = "real-zstd"
)

// realImages is the image in its forms; with -quick, a fifth of it.
func (b *bench) realImages() []image {
	layers := realImage()
	prefix := ""
	if b.quick {
		prefix = "small-"
		for i := range layers {
			layers[i].Files /= 5
			layers[i].Bytes /= 5
			layers[i].Hide /= 5
		}
		layers[len(layers)-1].Below = &layers[2]
	}
	return []image{
		{Name: prefix + gzipImage, Layers: layers, Plain: true},
		{Name: prefix + zstdImage, Layers: layers, Plain: true, Form: form{Zstd: true}},
	}
}

// contender is one way to pull.
type contender struct {
	name, kind, image string
	why               string // it cannot run; "" if it can
}

// The names of the contenders.
const (
	cofferGzip       = "coffer, gzip, encrypted"
	cofferGzipPlain  = "coffer, gzip, plain"
	cofferZstd       = "coffer, zstd, encrypted"
	cofferZstdPlain  = "coffer, zstd, plain"
	cofferGzipVerify = "coffer, gzip, encrypted, verified before unpacking"
	cofferZstdVerify = "coffer, zstd, encrypted, verified before unpacking"
	layerAfterLayer  = "containerd + imgcrypt, layer after layer"
	layersInParallel = "containerd + imgcrypt, layers in parallel"
	skopeoUmoci      = "skopeo + umoci"
)

// contenders are in the order of their turns.
func (b *bench) contenders() []contender {
	images := b.realImages()
	gz, zst := images[0].Name, images[1].Name
	return []contender{
		{name: cofferGzip, kind: "coffer", image: gz},
		{name: cofferGzipPlain, kind: "coffer", image: plainName(gz)},
		{name: layersInParallel, kind: "parallel", image: gz},
		{name: layerAfterLayer, kind: "sequential", image: gz},
		{name: cofferZstd, kind: "coffer", image: zst},
		{name: cofferZstdPlain, kind: "coffer", image: plainName(zst)},
		{name: cofferGzipVerify, kind: "coffer-verify-first", image: gz},
		{name: cofferZstdVerify, kind: "coffer-verify-first", image: zst},
		{name: skopeoUmoci, kind: "skopeo", image: gz, why: haveSkopeo()},
	}
}

// pulled is what the rounds measured.
type pulled struct {
	contenders map[string][]sample // by name
	stages     []sample            // each with all stages
}

// pulls lets all contenders and all single stages take turns.
func (b *bench) pulls(ctx context.Context) error {
	r := pulled{contenders: make(map[string][]sample)}
	for round := range b.runs {
		all := b.contenders()
		// Those whose ratios have the tightest targets run twice a round, side
		// by side: a machine's speed drifts by more than they differ.
		order := append(all, all[2], all[1], all[0])
		if round%2 == 1 { // so that nobody always runs after the same one
			slices.Reverse(order)
		}
		for _, c := range order {
			if c.why != "" {
				continue
			}
			s, err := b.onDisk(ctx, job{Kind: c.kind, Images: []string{c.image}, Tree: len(r.contenders[c.name]) == 0})
			if err != nil {
				return err
			}
			r.contenders[c.name] = append(r.contenders[c.name], s)
			b.say("round %d of %d: %-50s %6.2f s, CPU %6.2f s, %4.0f MiB", round+1, b.runs, c.name, s.Wall, s.CPU, rss(s))
		}
		stages, err := b.stages(ctx)
		if err != nil {
			return err
		}
		r.stages = append(r.stages, stages)
		b.say("round %d of %d: single stages", round+1, b.runs)
	}
	if err := b.sameTrees(r); err != nil {
		return err
	}
	b.judge(r)
	return nil
}

// stages times every stage alone, on the bytes of the gzip image.
func (b *bench) stages(ctx context.Context) (sample, error) {
	all := sample{Stages: make(map[string][]float64)}
	gz := b.realImages()[0].Name
	for _, step := range []struct {
		kind, image string
		run         func(context.Context, job) (sample, error)
	}{
		{"blob", gz, b.run}, {"tar", plainName(gz), b.run},
		{"apply", plainName(gz), b.onDisk}, {"reference", plainName(gz), b.onDisk},
	} {
		s, err := step.run(ctx, job{Kind: step.kind, Images: []string{step.image}})
		if err != nil {
			return all, err
		}
		for name, cpu := range s.Stages {
			all.Stages[name] = cpu
		}
	}
	return all, nil
}

// sameTrees makes sure that all contenders did the same work: those that keep
// layers apart must have unpacked the same files.
func (b *bench) sameTrees(r pulled) error {
	want, whose := []string(nil), ""
	for _, c := range b.contenders() {
		for _, s := range r.contenders[c.name] {
			switch {
			case s.Trees == nil:
			case want == nil:
				want, whose = s.Trees, c.name
			case !slices.Equal(want, s.Trees):
				return fmt.Errorf("%q and %q unpacked different files:\n%q\n%q", whose, c.name, want, s.Trees)
			}
		}
	}
	return nil
}

// floor is the least wall time in which the stages can be done: all of them
// over all cores, or the longest stage of one layer, which cannot be divided.
func floor(stages []sample) (total, wall float64) {
	longest := 0.0
	for _, name := range floorStages(stages) {
		for _, cpu := range stageCPU(stages, name) {
			total += cpu
			longest = max(longest, cpu)
		}
	}
	return total, max(total/float64(runtime.NumCPU()), longest)
}

// judge makes figures and tables of the rounds.
func (b *bench) judge(r pulled) {
	median := func(name string) float64 { return of(r.contenders[name], wall).median() }
	coffer := median(cofferGzip)
	floorCPU, floorWall := floor(r.stages)
	stage := func(name string) float64 { return sum(stageCPU(r.stages, name)) }

	b.figure("pull_encrypted_gzip_over_floor", coffer/floorWall, "wall ratio", atMost(1.15))
	b.figure("containerd_sequential_over_coffer", median(layerAfterLayer)/coffer, "wall ratio", atLeast(3.3))
	b.figure("containerd_parallel_over_coffer", median(layersInParallel)/coffer, "wall ratio", atLeast(2.3))
	b.figure("apply_over_containerd_apply", stage(stageApply)/stage(otherApply), "CPU ratio", atMost(0.60))
	b.figure("inflate_over_klauspost", stage(otherInflate)/stage(stageInflate), "throughput ratio", atLeast(1.7))
	b.figure("pull_encrypted_over_plain", coffer/median(cofferGzipPlain), "wall ratio", atMost(1.05))
	b.figure("pull_encrypted_over_plain_zstd", median(cofferZstd)/median(cofferZstdPlain), "wall ratio", target{})
	b.figure("pull_verify_before_unpack_over_streaming", median(cofferGzipVerify)/coffer, "wall ratio", target{})
	b.figure("pull_verify_before_unpack_over_streaming_zstd", median(cofferZstdVerify)/median(cofferZstd), "wall ratio", target{})
	unit := "wall ratio"
	if why := haveSkopeo(); why != "" {
		unit += "; not run: " + why
	}
	b.figure("skopeo_umoci_over_coffer", median(skopeoUmoci)/coffer, unit, target{})
	b.figure("pull_encrypted_gzip", coffer, "s", target{})
	b.figure("pull_encrypted_zstd", median(cofferZstd), "s", target{})
	b.figure("pull_floor", floorWall, "s", target{})
	b.tables = append(b.tables, b.pullTable(r, coffer, floorCPU, floorWall), b.stageTable(r, floorCPU))
}

func (b *bench) pullTable(r pulled, coffer, floorCPU, floorWall float64) table {
	t := table{
		Title: fmt.Sprintf("Pulls: median of %d, for the first three of %d (least - most)", b.runs, 2*b.runs),
		Head:  []string{"contender", "wall, s", "CPU, s", "peak RSS, MiB", "wall over coffer"},
	}
	t.row("floor", fmt.Sprintf("%.2f", floorWall), fmt.Sprintf("%.2f", floorCPU), "", fmt.Sprintf("%.2f", floorWall/coffer))
	for _, c := range b.contenders() {
		if c.why != "" {
			t.row(c.name, "not run: "+c.why)
			continue
		}
		samples := r.contenders[c.name]
		t.row(c.name, spread(of(samples, wall), "%.2f"), spread(of(samples, cpu), "%.2f"),
			fmt.Sprintf("%.0f", of(samples, rss).median()), fmt.Sprintf("%.2f", of(samples, wall).median()/coffer))
	}
	return t
}

// stageTable shows what the floor is made of, and what its stages are
// compared with.
func (b *bench) stageTable(r pulled, floorCPU float64) table {
	t := table{
		Title: fmt.Sprintf("Single stages: CPU seconds for all layers, median of %d", b.runs),
		Head:  []string{"stage", "CPU, s", "of the floor", "longest layer, s"},
	}
	for _, name := range allStages() {
		layers := stageCPU(r.stages, name)
		share := ""
		if slices.Contains(floorStages(r.stages), name) {
			share = fmt.Sprintf("%.0f %%", 100*sum(layers)/floorCPU)
		}
		t.row(name, fmt.Sprintf("%.3f", sum(layers)), share, fmt.Sprintf("%.3f", slices.Max(layers)))
	}
	return t
}
