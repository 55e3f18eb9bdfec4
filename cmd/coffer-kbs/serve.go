// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/kbs/appraisal"
	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rvps"
	"github.com/coffer-cc/coffer/kbs/server"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
	"github.com/coffer-cc/coffer/kbs/token"
	"github.com/coffer-cc/coffer/kbs/verifier"
	"github.com/coffer-cc/coffer/kbs/verifier/sample"
	"github.com/coffer-cc/coffer/kbs/verifier/tdx"
)

// Limits of the HTTP listener.
const (
	headerTimeout   = 10 * time.Second
	requestTimeout  = time.Minute
	idleTimeout     = 2 * time.Minute
	shutdownTimeout = 10 * time.Second
	maxHeader       = 1 << 20 // a bearer token with all claims is large
)

func serve(ctx context.Context, path string) (err error) {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	log, err := daemon.Logger(c.Log.Level)
	if err != nil {
		return err
	}
	store, err := bolt.Open(c.Storage.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	handler, err := assemble(ctx, c, store, log)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, c)
	if err != nil {
		return err
	}
	warn(c, log)
	log.InfoContext(ctx, "listening", "address", listener.Addr().String(), "tls", !c.Server.InsecureHTTP)
	return serveOn(ctx, listener, handler, log)
}

// assemble puts the parts of the service together.
func assemble(ctx context.Context, c Config, store *bolt.Store, log *slog.Logger) (http.Handler, error) {
	admins, err := adminKeys(c.Admin.PublicKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := token.LoadKey(ctx, store)
	if err != nil {
		return nil, err
	}
	tokens, err := token.NewIssuer(key, token.Options{
		Issuer: c.Attestation.Issuer, Lifetime: time.Duration(c.Attestation.TokenLifetime), Sample: c.Attestation.Sample,
	})
	if err != nil {
		return nil, err
	}
	verifiers := verifier.Set{"tdx": tdx.New(tdx.Options{Collateral: c.Attestation.TDX.Collateral})}
	if c.Attestation.Sample {
		verifiers["sample"] = sample.Verifier{}
	}
	refs := rvps.New(store, nil)
	if err := registerFile(ctx, refs, c.Attestation.ReferenceValues, log); err != nil {
		return nil, err
	}
	engine := policy.NewEngine(refs, policy.Options{Timeout: time.Duration(c.Policy.Timeout), Logger: log})
	policies := policy.NewLibrary(engine, store)
	return server.New(server.Parts{
		Appraiser: appraisal.New(verifiers, policies, appraisal.Options{Logger: log}),
		Tokens:    tokens, Policies: policies, ReferenceValues: refs, Storage: store, AdminKeys: admins,
	}, server.Options{
		SessionLifetime: time.Duration(c.Server.SessionLifetime), MaxSessions: c.Server.MaxSessions, MaxBody: c.Server.MaxBody,
		SecureCookie: !c.Server.InsecureHTTP, Logger: log,
	})
}

// adminKeys reads all public keys of a file; "" has none.
func adminKeys(path string) ([]ed25519.PublicKey, error) {
	if path == "" {
		return nil, nil
	}
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("admin.public_key_file: %w", err)
	}
	var keys []ed25519.PublicKey
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		key, ok := parsed.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, fmt.Errorf("admin.public_key_file: %s holds something other than Ed25519 public keys", path)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("admin.public_key_file: %s holds no public key in PEM", path)
	}
	return keys, nil
}

func registerFile(ctx context.Context, refs *rvps.Service, path string, log *slog.Logger) error {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("attestation.reference_values: %w", err)
	}
	var texts map[string]json.RawMessage // numbers stay as they are written
	if err := json.Unmarshal(b, &texts); err != nil {
		return fmt.Errorf("attestation.reference_values: %s is not a JSON object of names and values", path)
	}
	values := make(map[string]any, len(texts))
	for name, text := range texts {
		values[name] = text
	}
	names, err := refs.Set(ctx, values)
	if err != nil {
		return fmt.Errorf("attestation.reference_values: %w", err)
	}
	log.InfoContext(ctx, "audit", "audit", true, "action", "reference-value.in-force", "outcome", "ok", "source", path, "names", names)
	return nil
}

// warn says what a production service should not be.
func warn(c Config, log *slog.Logger) {
	if c.Attestation.Sample {
		log.Warn("SAMPLE EVIDENCE IS ACCEPTED: anybody can make it up and get what the resource policy allows; for development only, set attestation.sample = false")
	}
	if c.Server.InsecureHTTP && !loopback(c.Server.Address) {
		log.Warn("plain HTTP beyond this machine: administrators' tokens and uploads can be read on the way; set server.certificate and server.private_key", "address", c.Server.Address)
	}
	if c.Admin.PublicKeyFile == "" {
		log.Warn("nobody can administer this service: admin.public_key_file is not set")
	}
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func listen(ctx context.Context, c Config) (net.Listener, error) {
	var pair *keyPair
	var err error
	if !c.Server.InsecureHTTP {
		if pair, err = loadKeyPair(c.Server.Certificate, c.Server.PrivateKey); err != nil {
			return nil, fmt.Errorf("server.certificate: %w", err)
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Server.Address)
	if err != nil {
		return nil, fmt.Errorf("server.address: %w", err)
	}
	if pair == nil {
		return l, nil
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: pair.get, NextProtos: []string{"http/1.1"},
	}), nil
}

// serveOn serves until ctx ends, then lets running requests finish.
func serveOn(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	if err := daemon.Ready(); err != nil {
		log.WarnContext(ctx, "notify systemd", "err", err)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	log.InfoContext(ctx, "shutting down")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := s.Shutdown(grace)
	if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
