// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/plugin"
	"github.com/coffer-cc/coffer/snapshotter"
	"github.com/coffer-cc/coffer/snapshotter/imagefinder"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// stopTimeout is how long calls, pulls above all, may go on after a stop.
	stopTimeout = 10 * time.Second
	// maxMessage is the size of messages that containerd's own client takes;
	// a node's list of images can be long.
	maxMessage = 16 << 20
)

// serve runs the snapshotter until ctx is cancelled. Neither containerd nor the
// guest need to be there.
func serve(ctx context.Context, c Config) (err error) {
	log, err := daemon.Logger(c.Log.Level)
	if err != nil {
		return err
	}
	guest := service.NewClient(c.GuestSocket)
	defer func() { err = errors.Join(err, guest.Close()) }()
	containerd, err := dialContainerd(c.ContainerdAddress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, containerd.Close()) }()
	finder := imagefinder.FromContainerd(containerd, imagefinder.Options{Registries: c.Registries, Logger: log})
	metrics := plugin.NewMetrics()
	sn, err := snapshotter.Open(c.Root, metrics.Puller(guest), finder, snapshotter.Options{
		Logger:   log,
		Route:    snapshotter.Route(c.Route),
		Guest:    snapshotter.GuestOptions{Helper: c.Guest.Helper, PlainMounts: c.Guest.Mount == mountOverlay, StaticVolume: c.Guest.StaticVolume},
		Admitter: guest,
		Images:   finder,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()
	scraped, err := startMetrics(ctx, c.Metrics.Address, metrics, sn, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scraped.close()) }()
	blobs, err := startCache(ctx, c.Cache, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.close()) }()
	listener, err := daemon.ListenUnix(c.Address, 0o600)
	if err != nil {
		return err
	}
	log.Info("serving", "address", c.Address, "root", c.Root, "route", c.Route, "guest", c.GuestSocket)
	return serveOn(ctx, listener, sn, metrics, log)
}

// dialContainerd connects lazily: containerd starts after its snapshotter.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return conn, nil
}

// serveOn serves on listener, which it closes, until ctx is cancelled, and
// meanwhile cleans up what the last run left.
func serveOn(ctx context.Context, listener net.Listener, sn *snapshotter.Snapshotter, metrics *plugin.Metrics, log *slog.Logger) error {
	server := plugin.NewServer(sn, plugin.Options{Logger: log, Metrics: metrics})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	cleaned := make(chan struct{})
	cleanup, cancel := context.WithCancel(ctx)
	go func() {
		defer close(cleaned)
		if err := sn.Cleanup(cleanup); err != nil {
			log.Warn("cleanup after start", "err", err)
		}
	}()
	defer func() {
		cancel()
		<-cleaned
	}()
	if err := daemon.Ready(); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	if err := daemon.Stopping(); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	stop(server)
	return <-served
}

// stop lets running calls end, for a while.
func stop(server *grpc.Server) {
	timer := time.AfterFunc(stopTimeout, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}
