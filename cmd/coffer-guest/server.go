// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

const (
	// socketMode lets root alone connect: whoever connects gets what the TEE
	// is entitled to.
	socketMode os.FileMode = 0o600
	// stopTimeout is how long requests get to end after they were cancelled.
	stopTimeout = 5 * time.Second
)

// endpoint is one socket and the services on it. The socket listens from the
// beginning, so that clients that wait for it to appear find it at once; what
// they ask is answered when serve runs.
type endpoint struct {
	name     string
	listener net.Listener
	server   *ttrpc.Server
}

func listen(name, address string) (*endpoint, error) {
	l, err := daemon.ListenUnix(socketPath(address), socketMode)
	if err != nil {
		return nil, fmt.Errorf("sockets.%s: %w", name, err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &endpoint{name: name, listener: l, server: server}, nil
}

// serveAll answers requests until ctx ends, which cancels them. It returns when
// all have ended, or after stopTimeout.
func serveAll(ctx context.Context, endpoints []*endpoint, log *slog.Logger) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, e := range endpoints {
		group.Go(func() error {
			err := e.server.Serve(ctx, e.listener)
			if errors.Is(err, ttrpc.ErrServerClosed) {
				return nil
			}
			return fmt.Errorf("serve %s: %w", e.name, err)
		})
		group.Go(func() error {
			<-ctx.Done()
			e.stop(context.WithoutCancel(ctx), log)
			return nil
		})
	}
	return group.Wait()
}

func (e *endpoint) stop(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := e.server.Shutdown(ctx); err != nil {
		log.WarnContext(ctx, "requests are cut off", "socket", e.name, "err", err)
	}
	// A second close of the sockets is an error that says nothing.
	_ = e.server.Close()
}

func (e *endpoint) close() error {
	if err := e.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
