// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/plugin"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
)

// web is the HTTP servers of one purpose.
type web struct {
	servers []*http.Server
	serving sync.WaitGroup
}

// serve listens on the address that the configuration's key has, and answers
// until close.
func (w *web) serve(ctx context.Context, key, at string, handler http.Handler, log *slog.Logger) error {
	a, err := parseAddress(at)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	listener, err := a.listen(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	w.servers = append(w.servers, server)
	w.serving.Go(func() {
		// Snapshots go on without it.
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("not served any more", "key", key, "address", at, "err", err)
		}
	})
	log.Info("serving", "key", key, "address", at)
	return nil
}

func (w *web) close() error {
	var errs []error
	for _, s := range w.servers {
		errs = append(errs, s.Close())
	}
	w.serving.Wait()
	return errors.Join(errs...)
}

// startMetrics serves metrics and health. Without an address it serves nothing.
func startMetrics(ctx context.Context, address string, m *plugin.Metrics, sn snapshots.Snapshotter, log *slog.Logger) (*web, error) {
	w := &web{}
	if address == "" {
		return w, nil
	}
	m.Count(sn)
	mux := http.NewServeMux()
	mux.Handle("/metrics", m.Handler())
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, r *http.Request) {
		// Reads the metadata, and finds nothing of that name.
		if _, err := sn.Stat(r.Context(), "healthz"); err != nil && !errdefs.IsNotFound(err) {
			http.Error(out, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(out, "ok") // who asked may be gone
	})
	return w, w.serve(ctx, "metrics.address", address, mux, log)
}
