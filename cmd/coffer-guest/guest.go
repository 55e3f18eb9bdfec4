// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/initdata"
	aaservice "github.com/coffer-cc/coffer/attester/service"
	"github.com/coffer-cc/coffer/cdh"
	cdhservice "github.com/coffer-cc/coffer/cdh/service"
	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/metrics"
	"github.com/coffer-cc/coffer/imagepull/registry"
	pullservice "github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
	"github.com/coffer-cc/coffer/kbs"
)

// guest is everything wired together.
type guest struct {
	log       *slog.Logger
	detect    detector
	endpoints []*endpoint
	layers    *store.Store
	metrics   *metrics.Metrics
	initData  *initdata.Document // what the TEE was launched with; nil without
	anyImage  bool               // there is no image policy
	measurer  imagepull.Measurer // nil where pulls are not measured
	scrape    *scrape            // nil if nobody may
	closers   []func() error     // to be called in reverse order
}

// keyService is what gets resources and tokens: the KBS's client, or what says
// why there is none.
type keyService interface {
	cdh.ResourceGetter
	aaservice.TokenSource
}

// detector finds the TEE by name, as attester.Detect does.
type detector func(name string, opts attester.Options) (attester.Attester, error)

// newGuest listens on the sockets first and then builds what answers on them.
// It does no network I/O. On an error nothing stays behind.
func newGuest(ctx context.Context, conf Config, log *slog.Logger) (*guest, error) {
	return newGuestOn(ctx, conf, attester.Detect, log)
}

// newGuestOn is newGuest on a machine where detect finds the TEE.
func newGuestOn(ctx context.Context, conf Config, detect detector, log *slog.Logger) (_ *guest, err error) {
	g := &guest{log: log, detect: detect}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	var sockets [3]*endpoint
	for i, s := range []struct{ name, address string }{
		{"layer_puller", conf.Sockets.LayerPuller},
		{"cdh", conf.Sockets.CDH},
		{"attestation_agent", conf.Sockets.AttestationAgent},
	} {
		if sockets[i], err = listen(s.name, s.address); err != nil {
			return nil, err
		}
		g.closers = append(g.closers, sockets[i].close)
	}
	g.endpoints = sockets[:]

	evidence, err := g.attester(ctx, conf)
	if err != nil {
		return nil, err
	}
	if conf, err = g.bind(ctx, conf, evidence); err != nil {
		return nil, err
	}
	if err := g.openEventLog(ctx, conf, evidence); err != nil {
		return nil, err
	}
	keys, err := g.keyService(conf, evidence)
	if err != nil {
		return nil, err
	}
	hub := cdh.NewHub(keys, cdh.Options{})
	g.closers = append(g.closers, func() error { hub.Close(); return nil })
	puller, err := g.puller(ctx, conf, hub)
	if err != nil {
		return nil, err
	}
	if g.scrape, err = listenMetrics(ctx, conf.Metrics.Address, g.metrics.Handler()); err != nil {
		return nil, err
	}
	if g.scrape != nil {
		g.closers = append(g.closers, g.scrape.close)
	}
	pullservice.RegisterLayerPuller(sockets[0].server, puller)
	pullservice.RegisterImagePuller(sockets[0].server, puller)
	cdhservice.Register(sockets[1].server, hub, puller, cdhservice.Options{Logger: log})
	aaservice.Register(sockets[2].server, evidence, keys, aaservice.Options{Logger: log})
	return g, nil
}

// attester finds the TEE. A TEE that the configuration names must be there;
// where it names none, a machine without any still pulls plain images.
func (g *guest) attester(ctx context.Context, conf Config) (aaservice.EvidenceSource, error) {
	a, err := g.detect(conf.Attester.TEE, attester.Options{Logger: g.log})
	if err == nil {
		return attester.NewAgent(a), nil
	}
	if conf.Attester.TEE != attester.Auto {
		return nil, fmt.Errorf("attester.tee: %w", err)
	}
	g.log.WarnContext(ctx, "this machine is no TEE: encrypted images will be refused", "err", err)
	return unable{reason: precondition(fmt.Sprintf("this machine cannot attest: %v", err))}, nil
}

func (g *guest) keyService(conf Config, evidence kbs.EvidenceSource) (keyService, error) {
	if conf.KBS.URL == "" {
		return unable{reason: precondition("no KBS is configured: set kbs.url in coffer-guest's configuration")}, nil
	}
	var ca []byte
	if conf.KBS.CAFile != "" {
		var err error
		if ca, err = (sources{initData: g.initData}).read(conf.KBS.CAFile); err != nil {
			return nil, fmt.Errorf("kbs.ca_file: %w", err)
		}
	}
	opts := kbs.ClientOptions{CA: ca, Logger: g.log}
	if g.initData != nil {
		opts.InitData = g.initData.Text()
	}
	client, err := kbs.NewClient(conf.KBS.URL, evidence, opts)
	if err != nil {
		return nil, fmt.Errorf("kbs.url: %w", err)
	}
	g.closers = append(g.closers, client.Close)
	if u, ok := evidence.(unable); ok {
		return u, nil // do not bother a KBS with a TEE that is none
	}
	return client, nil
}

// puller makes what pulls, and with it the store and the registry's client.
func (g *guest) puller(ctx context.Context, conf Config, hub *cdh.Hub) (*imagepull.Puller, error) {
	named := sources{initData: g.initData, kbs: hub}
	options, err := registryOptions(ctx, conf, named, g.log)
	if err != nil {
		return nil, err
	}
	client, err := registry.NewClient(options)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	g.closers = append(g.closers, func() error { client.Close(); return nil })
	allowed, err := imagePolicy(ctx, conf, client, named, g.log)
	if err != nil {
		return nil, err
	}
	g.anyImage = allowed == nil
	g.layers, err = store.Open(conf.Image.WorkDir, store.Options{
		MaxAge: time.Duration(conf.Image.Keep.MaxAge), MaxBytes: conf.Image.Keep.MaxBytes, Logger: g.log,
	})
	if err != nil {
		return nil, fmt.Errorf("image.work_dir: %w", err)
	}
	g.closers = append(g.closers, g.layers.Close)
	g.metrics = metrics.New(metrics.Options{Usage: g.layers.Usage})
	p := imagepull.NewPuller(client, hub, g.layers, imagepull.Options{
		Policy:               allowed,
		Measure:              g.measurer,
		MaxDownloads:         conf.Image.MaxDownloads,
		MaxDownloadsPerImage: conf.Image.PerImage.MaxDownloads,
		MaxUnpacks:           cmp.Or(conf.Image.MaxUnpacks, imagepull.DefaultMaxUnpacks()),
		MaxUnpacksPerImage:   conf.Image.PerImage.MaxUnpacks,
		Tries:                conf.Registry.Tries,
		VerifyBeforeUnpack:   conf.Image.VerifyFirst,
		Unpack: unpack.Options{
			MaxEntries:  conf.Image.Limits.MaxEntries,
			MaxBytes:    conf.Image.Limits.MaxBytes,
			MaxMetadata: conf.Image.Limits.MaxMetadata,
			MaxRatio:    conf.Image.Limits.MaxRatio,
		},
		MaxCompressionRatio: conf.Image.Limits.Compression,
		Scratch:             filepath.Join(conf.Image.WorkDir, "scratch"),
		Progress:            g.metrics.Observe,
		Logger:              g.log,
	})
	g.closers = append(g.closers, func() error { p.Close(); return nil })
	if err := p.Sweep(); err != nil {
		return nil, fmt.Errorf("image.work_dir: %w", err)
	}
	return p, nil
}

// serve answers until ctx ends. Requests under way are then cancelled.
func (g *guest) serve(ctx context.Context) error {
	sweeping, cancel := context.WithCancel(ctx)
	sweeper := make(chan struct{})
	go func() {
		defer close(sweeper)
		g.layers.Run(sweeping)
	}()
	defer func() {
		cancel()
		<-sweeper
	}()
	if g.anyImage {
		g.log.WarnContext(ctx, "every image may be used here: set policy.image to say which")
	}
	g.log.InfoContext(ctx, "serving", "version", version())
	if err := daemon.Ready(); err != nil { // the sockets listen since newGuest
		g.log.WarnContext(ctx, "cannot tell systemd that the daemon is ready", "err", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveAll(ctx, g.endpoints, g.log) })
	if g.scrape != nil {
		group.Go(func() error { return g.scrape.serve(ctx) })
	}
	return group.Wait()
}

// close undoes newGuest, last part first.
func (g *guest) close() error {
	var failed error
	for _, f := range slices.Backward(g.closers) {
		failed = errors.Join(failed, f())
	}
	return failed
}

// precondition is an error that a change of configuration or machine mends.
func precondition(text string) error {
	return fmt.Errorf("%s: %w", text, errdefs.ErrFailedPrecondition)
}
