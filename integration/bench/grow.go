// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
)

// largest is the size of the layer that shows whether memory grows, in MB.
func (b *bench) largest() int {
	if b.quick {
		return 100
	}
	return 2000
}

// memory has real guests pull, and looks at their memory.
func (b *bench) memory(ctx context.Context) error {
	images := []string{sizedImage(b.largest()).Name}
	for _, img := range b.realImages() { // windows of zstd take the most
		images = append(images, img.Name)
	}
	t := table{Title: "The real coffer-guest, sample attestation included", Head: []string{"image", "wall, s", "peak RSS, MiB"}}
	most := 0.0
	for _, image := range images {
		p, err := b.pullWithGuest(ctx, image, diskBytes)
		if err != nil {
			return err
		}
		mib := float64(p.rss) / (1 << 20)
		most = max(most, mib)
		b.say("coffer-guest, %s: %.2f s, %.1f MiB", image, p.wall, mib)
		t.row(image, fmt.Sprintf("%.2f", p.wall), fmt.Sprintf("%.1f", mib))
	}
	b.tables = append(b.tables, t)
	b.figure("guest_peak_rss", most, "MiB", atMost(48))
	return nil
}

// allocationSizes are the sizes of two layers that differ in nothing else, in MB.
func (b *bench) allocationSizes() [2]int {
	if b.quick {
		return [2]int{10, 100}
	}
	return [2]int{10, 1000}
}

// allocations compares what a small and a large layer take from the heap.
func (b *bench) allocations(ctx context.Context) error {
	t := table{Title: "Heap allocations for one layer, median", Head: []string{"layer, MB", "objects", "KiB"}}
	var objects, bytes [2]float64
	for i, mb := range b.allocationSizes() {
		var samples []sample
		for range min(b.runs, 3) {
			s, err := b.onDisk(ctx, job{Kind: "coffer", Images: []string{sizedImage(mb).Name}})
			if err != nil {
				return err
			}
			samples = append(samples, s)
		}
		objects[i] = of(samples, func(s sample) float64 { return float64(s.Mallocs) }).median()
		bytes[i] = of(samples, func(s sample) float64 { return float64(s.Allocated) }).median()
		b.say("layer of %d MB: %.0f heap objects, %.0f KiB", mb, objects[i], bytes[i]/1024)
		t.row(fmt.Sprint(mb), fmt.Sprintf("%.0f", objects[i]), fmt.Sprintf("%.0f", bytes[i]/1024))
	}
	b.tables = append(b.tables, t)
	b.figure("allocations_large_over_small_layer", objects[1]/objects[0], "ratio of heap objects", atMost(1.1))
	b.figure("allocated_bytes_large_over_small_layer", bytes[1]/bytes[0], "ratio of heap bytes", atMost(1.1))
	return nil
}

// growth is the cost of three amounts of one kind of work.
type growth struct {
	name, unit string
	title      string // of its plot
	work       []float64
	jobs       [][]string // images, for each amount
	images     []image
}

// scales are layers, bytes, and images at once. With -quick the largest amount
// is left out.
func (b *bench) scales() []growth {
	layers := growth{name: "layers", title: "More layers", unit: "layers of 4 MB"}
	bytes := growth{name: "bytes", title: "More bytes", unit: "MB in one layer"}
	images := growth{name: "images", title: "More images at once", unit: "images of 2 layers and 24 MB, at once"}
	for i, n := range []int{1, 10, 100} {
		if b.quick && i == 2 {
			break
		}
		img := image{Name: fmt.Sprintf("layers-%d", n), Seed: 1000 * uint64(n), Form: form{Quick: true}}
		for range n {
			img.Layers = append(img.Layers, bulk(4e6))
		}
		layers.add(float64(n), img)
		bytes.add(float64(10*n), sizedImage(10*n))
	}
	var at []image
	for i := range 16 {
		at = append(at, image{
			Name: fmt.Sprintf("image-%02d", i), Seed: 10000 + 100*uint64(i), Form: form{Quick: true},
			Layers: []shape{bulk(12e6), bulk(12e6)},
		})
	}
	for i, n := range []int{1, 4, 16} {
		if b.quick && i == 2 {
			break
		}
		images.add(float64(n), at[:n]...)
	}
	return []growth{layers, bytes, images}
}

func (g *growth) add(work float64, images ...image) {
	names := make([]string, len(images))
	for i, img := range images {
		names[i] = img.Name
	}
	g.work, g.jobs, g.images = append(g.work, work), append(g.jobs, names), append(g.images, images...)
}

// scaling measures how the cost grows. Linear means that the largest amount
// costs no more for a unit than the middle one does.
func (b *bench) scaling(ctx context.Context) error {
	t := table{
		Title: "Cost as work grows: coffer, gzip, encrypted",
		Head:  []string{"work", "wall, s", "CPU, s", "peak RSS, MiB", "wall for one, ms", "CPU for one, ms"},
	}
	for _, g := range b.scales() {
		samples := make([][]sample, len(g.work))
		for range min(b.runs, 3) {
			for i, images := range g.jobs {
				s, err := b.onDisk(ctx, job{Kind: "coffer", Images: images})
				if err != nil {
					return err
				}
				samples[i] = append(samples[i], s)
				b.say("%g %s: %.2f s, CPU %.2f s", g.work[i], g.unit, s.Wall, s.CPU)
			}
		}
		c := curve{Title: g.title, Unit: g.unit, Work: g.work}
		for i, w := range g.work {
			walls, cpus := of(samples[i], wall), of(samples[i], cpu)
			c.Wall, c.CPU = append(c.Wall, walls.median()), append(c.CPU, cpus.median())
			t.row(fmt.Sprintf("%g %s", w, g.unit), spread(walls, "%.2f"), spread(cpus, "%.2f"),
				fmt.Sprintf("%.0f", of(samples[i], rss).median()),
				fmt.Sprintf("%.2f", 1000*walls.median()/w), fmt.Sprintf("%.2f", 1000*cpus.median()/w))
		}
		b.curves = append(b.curves, c)
		last, middle := len(g.work)-1, len(g.work)-2
		perUnit := func(cost []float64, i int) float64 { return cost[i] / g.work[i] }
		name := "growth_" + strings.ReplaceAll(g.name, " ", "_")
		b.figure(name+"_wall", perUnit(c.Wall, last)/perUnit(c.Wall, middle), "wall for one, most over fewer", atMost(1.2))
		b.figure(name+"_cpu", perUnit(c.CPU, last)/perUnit(c.CPU, middle), "CPU for one, most over fewer", atMost(1.2))
	}
	b.tables = append(b.tables, t)
	return nil
}
