// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/imagepull/registry/login"
	"github.com/coffer-cc/coffer/snapshotter/cache"
	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"
)

// cacheSocketMode lets the group of the folder's owner choose who connects.
const cacheSocketMode = 0o660

// CacheConfig is the table cache.
type CacheConfig struct {
	// Address is where guests find it: host:port, unix:///path or vsock://:port;
	// empty is no cache.
	Address string `toml:"address"`
	// Root is its folder.
	Root string `toml:"root"`
	// MaxBytes is the limit of what it keeps.
	MaxBytes int64 `toml:"max_bytes"`
	// Registries are those it may read from: host[:port] or http://host:port.
	Registries []string `toml:"registries"`
	// CredentialsFile is the node's docker config.json; empty is anonymous.
	CredentialsFile string `toml:"credentials_file"`
	// CAFiles are PEM files of authorities beside the system's.
	CAFiles []string `toml:"ca_files"`
	// MetricsAddress is host:port or unix:///path; empty is nowhere.
	MetricsAddress string `toml:"metrics_address"`
}

// address is a place to listen at.
type address struct {
	network string // tcp, unix or vsock
	host    string // host:port, or a path
	port    uint32 // of vsock
}

func parseAddress(s string) (a address, err error) {
	bad := fmt.Errorf("%q is neither host:port, unix:///path nor vsock://:port: %w", s, errdefs.ErrInvalidArgument)
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return a, bad
		}
		return address{network: "unix", host: path}, nil
	}
	if rest, ok := strings.CutPrefix(s, "vsock://:"); ok {
		// The last is what the kernel takes for any port.
		port, err := strconv.ParseUint(rest, 10, 32)
		if err != nil || port == 0 || port == math.MaxUint32 {
			return a, bad
		}
		return address{network: "vsock", port: uint32(port)}, nil
	}
	s = strings.TrimPrefix(s, "tcp://")
	_, port, err := net.SplitHostPort(s)
	if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || strings.Contains(s, "/") {
		return a, bad
	}
	return address{network: "tcp", host: s}, nil
}

func (a address) listen(ctx context.Context) (net.Listener, error) {
	switch a.network {
	case "unix":
		return daemon.ListenUnix(a.host, cacheSocketMode)
	case "vsock":
		const anyContext = math.MaxUint32 // VMADDR_CID_ANY
		return vsock.ListenContextID(anyContext, a.port, nil)
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", a.host)
}

// validate reports the first value that cannot work.
func (c CacheConfig) validate() error {
	if c.Address == "" {
		if c.MetricsAddress != "" {
			return fmt.Errorf("cache.metrics_address: given without cache.address: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if _, err := parseAddress(c.Address); err != nil {
		return fmt.Errorf("cache.address: %w", err)
	}
	if c.MetricsAddress != "" {
		if a, err := parseAddress(c.MetricsAddress); err != nil || a.network == "vsock" {
			return fmt.Errorf("cache.metrics_address: %q is neither host:port nor unix:///path: %w", c.MetricsAddress, errdefs.ErrInvalidArgument)
		}
	}
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("cache.root = %q must be an absolute path: %w", c.Root, errdefs.ErrInvalidArgument)
	}
	if c.MaxBytes <= 0 {
		return fmt.Errorf("cache.max_bytes must be more than 0: %w", errdefs.ErrInvalidArgument)
	}
	if len(c.Registries) == 0 {
		return fmt.Errorf("cache.registries: the cache may read from none; name those of the images: %w", errdefs.ErrInvalidArgument)
	}
	for _, r := range c.Registries {
		if _, _, err := cache.ParseRegistry(r); err != nil {
			return fmt.Errorf("cache.registries: %w", err)
		}
	}
	return nil
}

// options reads the files that the configuration names.
func (c CacheConfig) options(log *slog.Logger) (cache.Options, error) {
	opts := cache.Options{Registries: c.Registries, MaxBytes: c.MaxBytes, Proxy: http.ProxyFromEnvironment, Logger: log}
	if len(c.CAFiles) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, path := range c.CAFiles {
			pem, err := os.ReadFile(path)
			if err == nil && !pool.AppendCertsFromPEM(pem) {
				err = errors.New("no PEM certificate in it")
			}
			if err != nil {
				return opts, fmt.Errorf("cache.ca_files: %s: %w", path, err)
			}
		}
		opts.RootCAs = pool
	}
	if c.CredentialsFile == "" {
		return opts, nil
	}
	fetch := func(context.Context) ([]byte, error) { return os.ReadFile(c.CredentialsFile) }
	loader := login.NewLoader(fetch, login.LoaderOptions{Config: login.Options{Programs: true}, Logger: log})
	opts.Credential = func(ctx context.Context, registry, repository string) (cache.Credential, error) {
		l, err := loader.Credential(ctx, registry, repository)
		return cache.Credential(l), err
	}
	b, err := fetch(context.Background())
	if err == nil {
		_, err = login.Parse(b, login.Options{Programs: true})
	}
	if err != nil {
		return opts, fmt.Errorf("cache.credentials_file: %s: %w", c.CredentialsFile, err)
	}
	return opts, nil
}

// blobCache is the cache and what serves it. A nil one is none.
type blobCache struct {
	cache *cache.Cache
	web
}

// startCache serves the cache, if the configuration has one, until close.
func startCache(ctx context.Context, c CacheConfig, log *slog.Logger) (_ *blobCache, err error) {
	if c.Address == "" {
		return nil, nil
	}
	opts, err := c.options(log)
	if err != nil {
		return nil, err
	}
	b := &blobCache{}
	if b.cache, err = cache.Open(c.Root, opts); err != nil {
		return nil, err
	}
	if err := b.serve(ctx, "cache.address", c.Address, b.cache, log); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if c.MetricsAddress != "" {
		mux := http.NewServeMux()
		mux.Handle("/metrics", b.cache.MetricsHandler())
		if err := b.serve(ctx, "cache.metrics_address", c.MetricsAddress, mux, log); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

// close cuts what is being sent: the guests ask the registry for the rest.
func (b *blobCache) close() error {
	if b == nil {
		return nil
	}
	return errors.Join(b.web.close(), b.cache.Close())
}
