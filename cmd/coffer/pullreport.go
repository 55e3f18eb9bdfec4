// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	events "github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/timeline"
)

// pullReport is what coffer pull --json prints. Times are seconds; the stages of
// a layer overlap, so that they do not add up.
type pullReport struct {
	Image        string                   `json:"image"`
	Manifest     digest.Digest            `json:"manifest"`
	Layers       []layerReport            `json:"layers"`
	Bundle       string                   `json:"bundle,omitempty"`
	Seconds      float64                  `json:"seconds"`
	Stages       map[events.Stage]float64 `json:"stages"`
	Attestations []attestationReport      `json:"attestations"`
}

// layerReport is one layer, from the bottom up.
type layerReport struct {
	Digest   digest.Digest            `json:"digest"`
	ChainID  digest.Digest            `json:"chainID"`
	Size     int64                    `json:"size"`     // of the blob
	Unpacked int64                    `json:"unpacked"` // on disk
	Path     string                   `json:"path"`
	Cached   bool                     `json:"cached"`
	Seconds  map[events.Stage]float64 `json:"seconds"`
}

// attestationReport is one signing of evidence by the TEE.
type attestationReport struct {
	TEE     string  `json:"tee"`
	Start   float64 `json:"start"` // since the beginning of the pull
	Seconds float64 `json:"seconds"`
}

func (pl *pulling) report(took time.Duration) pullReport {
	image, t := pl.registry.last(), pl.timeline()
	r := pullReport{
		Image: image.Reference, Manifest: image.Manifest, Bundle: pl.bundle, Seconds: took.Seconds(), Stages: stagesOf(t.Stages),
		Layers: []layerReport{}, Attestations: []attestationReport{},
	}
	for _, l := range t.Layers {
		out := layerReport{Digest: l.Blob, ChainID: l.ChainID, Size: l.Size, Cached: l.Cached, Seconds: stagesOf(l.Spans)}
		if stored, ok := pl.layers.Layer(l.ChainID); ok {
			out.Path, out.Unpacked = stored.Path, stored.Size
		}
		r.Layers = append(r.Layers, out)
	}
	for _, s := range t.Attestation {
		if s.Stage == timeline.Evidence {
			r.Attestations = append(r.Attestations, attestationReport{TEE: s.Detail, Start: s.Start.Seconds(), Seconds: (s.End - s.Start).Seconds()})
		}
	}
	return r
}

// reportPull prints what came of a pull that succeeded.
func (p *process) reportPull(pl *pulling, flags *pullFlags, took time.Duration) error {
	r := pl.report(took)
	if flags.json {
		e := json.NewEncoder(p.stdout)
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	if !flags.quiet {
		var fetched int64
		here := 0
		for _, l := range r.Layers {
			if l.Cached {
				here++
			} else {
				fetched += l.Size
			}
		}
		line := fmt.Sprintf("pulled %s, %s fetched, in %.2f s", count(len(r.Layers), "layer"), size(fetched), r.Seconds)
		if here > 0 {
			line += fmt.Sprintf("; %d of them were here already", here)
		}
		if n := len(r.Attestations); n > 0 {
			line += fmt.Sprintf("; attested %s", times(n))
		}
		fmt.Fprintln(p.stderr, line)
		if r.Bundle != "" {
			fmt.Fprintf(p.stderr, "bundle %s: remove it with coffer bundle remove %s --root %s\n", r.Bundle, r.Bundle, flags.root)
		}
	}
	_, err := fmt.Fprintln(p.stdout, r.Image)
	return err
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
