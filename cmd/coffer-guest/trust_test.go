// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/kbstest"
)

// testPolicy has policy and logins in the KBS: one image may be used.
func testPolicy(t *testing.T, w *world) {
	service := kbstest.New(t, kbstest.Options{Sample: true})
	service.Put("default/key/1", w.key.KEK)
	service.Put("default/policy/image", fmt.Appendf(nil, `{"default":[{"type":"reject"}],"transports":{"docker":{
		%q:[{"type":"digests","digests":[%q]}]}}}`, w.registry.Host()+"/plain", w.plain.Manifest.Digest))
	service.Put("default/registry/logins", []byte(`{"auths":{}}`))
	g := startGuest(t, func(c *Config) {
		w.insecure(c)
		c.KBS.URL = service.URL
		c.Policy.Image = "kbs:///default/policy/image"
		c.Registry.Credentials = "kbs:///default/registry/logins"
	})
	if _, err := pull(t, g, w.plain, w.plain.Chain()); err != nil {
		t.Error(err)
	}
	_, err := pull(t, g, w.locked, w.locked.Chain())
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "image policy") {
		t.Errorf("an image that the policy rejects: %v", err)
	}
	if n := service.Count("resource"); n != 1 {
		t.Errorf("%d resources were fetched; the policy is one, and no key was needed", n)
	}
	g.stop()
	checkNothingStaged(t, g.conf)
}

func testMetrics(t *testing.T, w *world) {
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	g := startGuest(t, func(c *Config) {
		w.insecure(c)
		c.Metrics.Address = "unix://" + socket
	})
	if _, err := pull(t, g, w.plain, w.plain.Chain()); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(b), `coffer_imagepull_layers_total{result="fetched"} 2`) {
		t.Errorf("status %d:\n%s", resp.StatusCode, b)
	}
	if strings.Contains(string(b), "plain") {
		t.Error("the metrics name an image")
	}
}

// What a file says is checked at the start, and the error names the key.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("[registries.search]\nregistries = ['a']\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, edit := range map[string]func(*Config){
		"registry.credentials: ":       func(c *Config) { c.Registry.Credentials = bad },
		"registry.config_file: ":       func(c *Config) { c.Registry.ConfigFile = "file that is not there" },
		"registry.config_file: " + bad: func(c *Config) { c.Registry.ConfigFile = bad },
		"registry.certs_dir: ":         func(c *Config) { c.Registry.CertsDir = filepath.Join(dir, "none") },
		"registry.ca_files: ":          func(c *Config) { c.Registry.CAFiles = []string{filepath.Join(dir, "none")} },
		"registry.platform: ":          func(c *Config) { c.Registry.Platform = "linux" },
		"policy.image: ":               func(c *Config) { c.Policy.Image = "http://policy" },
		"policy.image: " + bad:         func(c *Config) { c.Policy.Image = bad },
		"policy.signatures: ":          func(c *Config) { c.Policy.Image, c.Policy.Signatures = "kbs:///a/b/c", "relative" },
		"metrics.address: ":            func(c *Config) { c.Metrics.Address = "256.0.0.1:1" },
	} {
		c := Default()
		own := t.TempDir()
		c.Sockets.LayerPuller = filepath.Join(own, "guest.sock")
		c.Sockets.CDH = filepath.Join(own, "cdh.sock")
		c.Sockets.AttestationAgent = filepath.Join(own, "aa.sock")
		c.Image.WorkDir = filepath.Join(own, "images")
		edit(&c)
		if _, err := newGuest(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
