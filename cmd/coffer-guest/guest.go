// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/attester"
	aaservice "github.com/coffer-cc/coffer/attester/service"
	"github.com/coffer-cc/coffer/cdh"
	cdhservice "github.com/coffer-cc/coffer/cdh/service"
	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/registry"
	pullservice "github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/imagepull/store"
	"github.com/coffer-cc/coffer/imagepull/unpack"
	"github.com/coffer-cc/coffer/kbs"
)

// guest is everything wired together.
type guest struct {
	log       *slog.Logger
	endpoints []*endpoint
	layers    *store.Store
	closers   []func() error // to be called in reverse order
}

// keyService is what gets resources and tokens: the KBS's client, or what says
// why there is none.
type keyService interface {
	cdh.ResourceGetter
	aaservice.TokenSource
}

// newGuest listens on the sockets first and then builds what answers on them.
// It does no network I/O. On an error nothing stays behind.
func newGuest(ctx context.Context, conf Config, log *slog.Logger) (_ *guest, err error) {
	g := &guest{log: log}
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
	keys, err := g.keyService(conf, evidence)
	if err != nil {
		return nil, err
	}
	hub := cdh.NewHub(keys, cdh.Options{})
	g.closers = append(g.closers, func() error { hub.Close(); return nil })
	puller, err := g.puller(conf, hub)
	if err != nil {
		return nil, err
	}
	pullservice.RegisterLayerPuller(sockets[0].server, puller)
	cdhservice.Register(sockets[1].server, hub, puller, cdhservice.Options{Logger: log})
	aaservice.Register(sockets[2].server, evidence, keys, aaservice.Options{Logger: log})
	return g, nil
}

// attester finds the TEE. A TEE that the configuration names must be there;
// where it names none, a machine without any still pulls plain images.
func (g *guest) attester(ctx context.Context, conf Config) (aaservice.EvidenceSource, error) {
	a, err := attester.Detect(conf.Attester.TEE, attester.Options{Logger: g.log})
	if err == nil {
		agent := attester.NewAgent(a)
		return agent, g.eventLog(ctx, conf, agent)
	}
	if conf.Attester.TEE != attester.Auto {
		return nil, fmt.Errorf("attester.tee: %w", err)
	}
	if conf.Attester.Measure == measureRequired {
		return nil, fmt.Errorf("attester.measure: %q, but there is no TEE: %w", measureRequired, err)
	}
	g.log.WarnContext(ctx, "this machine is no TEE: encrypted images will be refused", "err", err)
	return unable{reason: precondition(fmt.Sprintf("this machine cannot attest: %v", err))}, nil
}

// eventLog begins the log of runtime events, where the TEE can have one.
func (g *guest) eventLog(ctx context.Context, conf Config, agent *attester.Agent) error {
	if conf.Attester.Measure == measureOff {
		return nil
	}
	err := agent.OpenEventLog(conf.Attester.EventLog)
	if errdefs.IsNotImplemented(err) && conf.Attester.Measure == measureAuto {
		g.log.InfoContext(ctx, "pulls are not measured", "tee", agent.TEE(), "reason", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("attester.measure: %w", err)
	}
	return nil
}

func (g *guest) keyService(conf Config, evidence kbs.EvidenceSource) (keyService, error) {
	if conf.KBS.URL == "" {
		return unable{reason: precondition("no KBS is configured: set kbs.url in coffer-guest's configuration")}, nil
	}
	var ca []byte
	if conf.KBS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(conf.KBS.CAFile); err != nil {
			return nil, fmt.Errorf("kbs.ca_file: %w", err)
		}
	}
	client, err := kbs.NewClient(conf.KBS.URL, evidence, kbs.ClientOptions{CA: ca, Logger: g.log})
	if err != nil {
		return nil, fmt.Errorf("kbs.url: %w", err)
	}
	g.closers = append(g.closers, client.Close)
	if u, ok := evidence.(unable); ok {
		return u, nil // do not bother a KBS with a TEE that is none
	}
	return client, nil
}

func (g *guest) puller(conf Config, keys imagepull.KeyUnwrapper) (*imagepull.Puller, error) {
	options, err := registryOptions(conf)
	if err != nil {
		return nil, err
	}
	client, err := registry.NewClient(options)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	g.closers = append(g.closers, func() error { client.Close(); return nil })
	g.layers, err = store.Open(conf.Image.WorkDir, store.Options{Logger: g.log})
	if err != nil {
		return nil, fmt.Errorf("image.work_dir: %w", err)
	}
	g.closers = append(g.closers, g.layers.Close)
	p := imagepull.NewPuller(client, keys, g.layers, imagepull.Options{
		MaxDownloads:       conf.Image.MaxDownloads,
		MaxUnpacks:         conf.Image.MaxUnpacks,
		VerifyBeforeUnpack: conf.Image.VerifyFirst,
		Unpack: unpack.Options{
			MaxEntries:  conf.Image.Limits.MaxEntries,
			MaxBytes:    conf.Image.Limits.MaxBytes,
			MaxMetadata: conf.Image.Limits.MaxMetadata,
			MaxRatio:    conf.Image.Limits.MaxRatio,
		},
		Scratch: filepath.Join(conf.Image.WorkDir, "scratch"),
		Logger:  g.log,
	})
	g.closers = append(g.closers, func() error { p.Close(); return nil })
	if err := p.Sweep(); err != nil {
		return nil, fmt.Errorf("image.work_dir: %w", err)
	}
	return p, nil
}

func registryOptions(conf Config) (registry.Options, error) {
	o := registry.Options{Insecure: conf.Registry.Insecure}
	for _, path := range conf.Registry.CAFiles {
		pem, err := os.ReadFile(path)
		if err != nil {
			return o, fmt.Errorf("registry.ca_files: %w", err)
		}
		o.CAs = append(append(o.CAs, pem...), '\n')
	}
	if path := conf.Registry.Credentials; path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return o, fmt.Errorf("registry.credentials: %w", err)
		}
		if o.Credentials, err = registry.ParseCredentials(b); err != nil {
			return o, fmt.Errorf("registry.credentials: %s: %w", path, err)
		}
	}
	return o, nil
}

// serve answers until ctx ends. Requests under way are then cancelled.
func (g *guest) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	sweeper := make(chan struct{})
	go func() {
		defer close(sweeper)
		g.layers.Run(ctx)
	}()
	defer func() {
		cancel()
		<-sweeper
	}()
	g.log.InfoContext(ctx, "serving", "version", version())
	if err := daemon.Ready(); err != nil { // the sockets listen since newGuest
		g.log.WarnContext(ctx, "cannot tell systemd that the daemon is ready", "err", err)
	}
	return serveAll(ctx, g.endpoints, g.log)
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
