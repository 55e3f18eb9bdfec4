// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	pullservice "github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/kbs/kbstest"
)

// needRoot skips a test that unpacks layers.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("REQUIRE names root, and this is not root")
	}
	t.Skip("needs root to unpack layers with their owners")
}

// running is a guest in this process and a client of its layer puller.
type running struct {
	conf   Config
	client *pullservice.Client
	stop   func() // ends the guest and waits
}

func startGuest(t *testing.T, edit func(*Config)) *running {
	t.Helper()
	return startGuestOn(t, attester.Detect, edit)
}

func startGuestOn(t *testing.T, detect detector, edit func(*Config)) *running {
	t.Helper()
	dir := t.TempDir()
	conf := Default()
	conf.Sockets.LayerPuller = filepath.Join(dir, "run", "guest.sock")
	conf.Sockets.CDH = "unix://" + filepath.Join(dir, "run", "cdh.sock")
	conf.Sockets.AttestationAgent = "unix://" + filepath.Join(dir, "run", "aa.sock")
	conf.Attester.TEE = "sample"
	conf.Image.WorkDir = filepath.Join(dir, "images")
	edit(&conf)
	ctx, cancel := context.WithCancel(t.Context())
	g, err := newGuestOn(ctx, conf, detect, slog.New(slog.DiscardHandler))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := errors.Join(g.serve(ctx), g.close()); err != nil {
			t.Errorf("guest ended: %v", err)
		}
	})
	client := pullservice.NewClient(conf.Sockets.LayerPuller)
	r := &running{conf: conf, client: client}
	r.stop = sync.OnceFunc(func() {
		cancel()
		serving.Wait()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// world is what a guest pulls from.
type world struct {
	registry            *imagetest.Registry
	key                 imagetest.Key
	plain, locked, slow imagetest.Pushed
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{registry: imagetest.New(t), key: imagetest.NewKey(t, "kbs:///default/key/1")}
	w.plain = w.registry.Push(t, "plain:1", imagetest.Image{Layers: []imagetest.Layer{
		{Files: map[string]string{"etc/name": "bottom"}, Compression: imagetest.Gzip},
		{Files: map[string]string{"etc/name": "top"}, Compression: imagetest.Zstd},
	}})
	w.locked = w.registry.Push(t, "locked:1", imagetest.Image{Layers: []imagetest.Layer{
		{Random: 1 << 20, Compression: imagetest.Gzip, Key: &w.key},
		{Random: 1 << 20, Compression: imagetest.Zstd, Key: &w.key},
		{Files: map[string]string{"a": "b"}, Key: &w.key},
	}})
	w.slow = w.registry.Push(t, "slow:1", imagetest.Image{Layers: []imagetest.Layer{
		{Random: 1 << 20}, {Random: 1 << 20, Compression: imagetest.Gzip},
	}})
	return w
}

func (w *world) insecure(c *Config) { c.Registry.Insecure = []string{w.registry.Host()} }

func pull(t *testing.T, g *running, image imagetest.Pushed, chainID digest.Digest) (string, error) {
	t.Helper()
	path, size, inodes, err := g.client.PullLayer(t.Context(), image.Reference, image.Manifest.Digest, chainID)
	if err == nil && (size <= 0 || inodes <= 0) {
		t.Errorf("layer has %d bytes, %d inodes", size, inodes)
	}
	return path, err
}

// TestGuest and its parts are not parallel, since they look for goroutines
// that are left.
func TestGuest(t *testing.T) { //nolint:paralleltest // see above
	needRoot(t)
	w := newWorld(t)
	before := goleak.IgnoreCurrent()
	for name, part := range map[string]func(*testing.T, *world){
		"plain image":     testPlain,
		"no KBS":          testNoKBS,
		"encrypted image": testEncrypted,
		"stop":            testStop,
		"bad arguments":   testBadArguments,
		"image policy":    testPolicy,
		"metrics":         testMetrics,
	} {
		t.Run(name, func(t *testing.T) { part(t, w) })
	}
	goleak.VerifyNone(t, before)
}

func testPlain(t *testing.T, w *world) {
	g := startGuest(t, w.insecure)
	path, err := pull(t, g, w.plain, w.plain.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(path, "etc/name")); err != nil || string(b) != "top" {
		t.Errorf("file %q, %v", b, err)
	}
	if err := g.client.RemoveLayer(t.Context(), w.plain.Chain()); err != nil {
		t.Error(err)
	}
}

func testNoKBS(t *testing.T, w *world) {
	g := startGuest(t, w.insecure)
	_, err := pull(t, g, w.locked, w.locked.Chain())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no KBS is configured: set kbs.url") {
		t.Errorf("error %v", err)
	}
	g.stop()
	checkNothingStaged(t, g.conf)
}

func testEncrypted(t *testing.T, w *world) {
	service := kbstest.New(t, kbstest.Options{Sample: true, TLS: true})
	service.Put("default/key/1", w.key.KEK)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, service.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	withKBS := func(c *Config) {
		w.insecure(c)
		c.KBS.URL, c.KBS.CAFile = service.URL, ca
	}
	g := startGuest(t, withKBS)
	if _, err := pull(t, g, w.plain, w.plain.Chain()); err != nil {
		t.Error(err)
	}
	if n := service.Count("auth"); n != 0 {
		t.Errorf("a plain image made %d requests to the KBS", n)
	}
	var calls sync.WaitGroup
	for _, layer := range w.locked.Layers {
		calls.Go(func() {
			if _, err := pull(t, g, w.locked, layer.ChainID); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if n, keys := service.Handshakes(), service.Count("resource"); n != 1 || keys != 1 {
		t.Errorf("%d handshakes, %d key fetches", n, keys)
	}
	g.stop()

	service.DenyAll()
	g = startGuest(t, withKBS)
	_, err := pull(t, g, w.locked, w.locked.Chain())
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "kbs "+service.URL+": ") {
		t.Errorf("denied key: %v", err)
	}
	g.stop()
	checkNothingStaged(t, g.conf)
}

// testStop ends the guest while a layer is half there.
func testStop(t *testing.T, w *world) {
	stalled := w.slow.Layers[1].Digest.String()
	w.registry.Fail(stalled, imagetest.Fault{Stall: true, After: 100_000})
	defer w.registry.Heal()
	g := startGuest(t, w.insecure)
	var call sync.WaitGroup
	call.Go(func() {
		if _, err := pull(t, g, w.slow, w.slow.Chain()); err == nil {
			t.Error("a pull that was cut off succeeded")
		}
	})
	<-w.registry.Began(stalled)
	g.stop()
	call.Wait()
	checkNothingStaged(t, g.conf)
	for _, socket := range []string{g.conf.Sockets.LayerPuller, g.conf.Sockets.CDH, g.conf.Sockets.AttestationAgent} {
		if _, err := os.Lstat(socketPath(socket)); !os.IsNotExist(err) {
			t.Errorf("socket %s stays: %v", socket, err)
		}
	}
}

func testBadArguments(t *testing.T, w *world) {
	g := startGuest(t, w.insecure)
	if _, err := pull(t, g, w.plain, "../../etc"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
}

func checkNothingStaged(t *testing.T, conf Config) {
	t.Helper()
	staged, err := os.ReadDir(filepath.Join(conf.Image.WorkDir, "staging"))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	if len(staged) != 0 {
		t.Errorf("staging has %v", staged)
	}
}

// TestNoTEE has a machine without TEE: the guest starts, and says why it
// attests nothing.
func TestNoTEE(t *testing.T) {
	t.Parallel()
	g := &guest{log: slog.New(slog.DiscardHandler), detect: attester.Detect}
	conf := Default()
	source, err := g.attester(t.Context(), conf)
	if _, isTEE := source.(unable); err != nil || !isTEE {
		t.Skipf("this machine is a TEE (%v)", err)
	}
	conf.KBS.URL = "https://kbs.example"
	keys, err := g.keyService(conf, source)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.GetResource(t.Context(), "kbs:///a/b/c"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot attest") {
		t.Errorf("error %v", err)
	}
	if _, err := source.Evidence(t.Context(), nil); !errdefs.IsFailedPrecondition(err) || source.TEE() != "" {
		t.Errorf("tee %q, error %v", source.TEE(), err)
	}
	conf.Attester.TEE = "tdx"
	if _, err := g.attester(t.Context(), conf); err == nil || !strings.HasPrefix(err.Error(), "attester.tee: ") {
		t.Errorf("a TEE that is named and missing: %v", err)
	}
	if err := g.close(); err != nil {
		t.Error(err)
	}
}

func TestRequiredMeasurement(t *testing.T) {
	t.Parallel()
	for tee, want := range map[string]string{"sample": "no runtime measurement registers", "auto": "no TEE"} {
		dir := t.TempDir()
		conf := Default()
		conf.Sockets.LayerPuller = filepath.Join(dir, "guest.sock")
		conf.Sockets.CDH = filepath.Join(dir, "cdh.sock")
		conf.Sockets.AttestationAgent = filepath.Join(dir, "aa.sock")
		conf.Image.WorkDir = filepath.Join(dir, "images")
		conf.Attester.TEE, conf.Attester.Measure = tee, measureRequired
		_, err := newGuest(t.Context(), conf, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "attester.measure: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %q", tee, err, want)
		}
	}
}
