// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registryProcess is a registry in a process of its own, whose CPU time counts
// for nobody.
type registryProcess struct {
	addr string
	cmd  *exec.Cmd
}

// startRegistry serves the cache at addr, where port 0 means any.
func startRegistry(ctx context.Context, c cache, addr string) (*registryProcess, error) {
	return startLinkedRegistry(ctx, c, addr, 0)
}

// startLinkedRegistry does so behind a link of so many bytes a second; 0 is none.
func startLinkedRegistry(ctx context.Context, c cache, addr string, rate int64) (*registryProcess, error) {
	cmd, err := self(ctx, "registry", c.dir, addr, strconv.FormatInt(rate, 10))
	if err != nil {
		return nil, err
	}
	// It ends with its input. A parent-death signal would come too early: with
	// the thread that started it, which a testbed may take and end.
	cmd.SysProcAttr = nil
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &registryProcess{cmd: cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("the registry does not start: %w", err)
	}
	r.addr = strings.TrimSpace(line)
	return r, nil
}

// stop ends the registry.
func (r *registryProcess) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // it was killed: that is no news
}

// serveRegistry is the other side of startRegistry: it prints the address and
// serves until the context or its input ends.
func serveRegistry(ctx context.Context, c cache, addr, rate string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // however it ends, it ends
		cancel()
	}()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseInt(rate, 10, 64); err != nil {
		return err
	} else if n > 0 {
		l = &link{Listener: l, rate: n}
	}
	handler := &counter{Handler: registryHandler(c), left: make(map[string]int)}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	fmt.Println(l.Addr())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// registryHandler serves /v2/bench/NAME/manifests|blobs/REF. Blobs go from
// file to socket in the kernel.
func registryHandler(c cache) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/bench/{name}/manifests/{ref}", func(w http.ResponseWriter, r *http.Request) {
		d := digest.Digest(r.PathValue("ref"))
		if !strings.Contains(d.String(), ":") {
			var err error
			if d, err = c.find(r.PathValue("name")); err != nil || d == "" {
				http.NotFound(w, r)
				return
			}
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		serveBlob(w, r, c, d)
	})
	mux.HandleFunc("GET /v2/bench/{name}/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		serveBlob(w, r, c, digest.Digest(r.PathValue("digest")))
	})
	return mux
}

func serveBlob(w http.ResponseWriter, r *http.Request, c cache, d digest.Digest) {
	if d.Validate() != nil {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(c.blob(d))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", time.Time{}, f)
}
