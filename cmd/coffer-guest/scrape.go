// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
)

// scrapeTimeout bounds one request for metrics.
const scrapeTimeout = 10 * time.Second

// scrape serves the metrics.
type scrape struct {
	listener net.Listener
	server   *http.Server
}

// listenMetrics returns nil where the address is empty.
func listenMetrics(ctx context.Context, address string, handler http.Handler) (*scrape, error) {
	if address == "" {
		return nil, nil
	}
	var l net.Listener
	var err error
	if path := socketPath(address); filepath.IsAbs(path) {
		l, err = daemon.ListenUnix(path, socketMode)
	} else {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics.address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	return &scrape{listener: l, server: &http.Server{
		Handler: mux, ReadTimeout: scrapeTimeout, WriteTimeout: scrapeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
	}}, nil
}

// serve answers until ctx ends.
func (s *scrape) serve(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = s.server.Close() // a scrape that is cut off is asked for again
	})
	err := s.server.Serve(s.listener)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

func (s *scrape) close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
