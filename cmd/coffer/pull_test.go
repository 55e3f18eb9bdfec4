// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	events "github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/kbs/kbstest"
)

// needRoot skips a test without root's rights, unless REQUIRE asks for it.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("unpacking layers needs root, and REQUIRE names it")
	}
	t.Skip("unpacking layers needs root")
}

const (
	pullWorldKey = "world" // of testscript.Env.Values
	pullKID      = "kbs:///default/key/app"
)

// pullWorld is a registry with two images of three layers, and a key broker
// service that has the key of the encrypted one.
type pullWorld struct {
	registry         *imagetest.Registry
	service          *kbstest.Server
	plain, encrypted imagetest.Pushed
}

func newPullWorld(t testing.TB) *pullWorld {
	t.Helper()
	w := &pullWorld{registry: imagetest.New(t), service: kbstest.New(t, kbstest.Options{Sample: true})}
	key := imagetest.NewKey(t, pullKID)
	w.service.Put("default/key/app", key.KEK)
	w.service.Put("default/policy/closed", []byte(`{"default":[{"type":"reject"}]}`))
	w.service.Put("default/policy/open", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	build := func(name string, keys ...imagetest.Key) imagetest.Pushed {
		layers := []imagetest.Layer{
			{Keys: keys, Compression: imagetest.Gzip, Files: map[string]string{"etc/passwd": "app:x:7:8::/:/bin/sh\n", "old": "old"}},
			{Keys: keys, Compression: imagetest.Zstd, Random: 200_000},
			{Keys: keys, Files: map[string]string{".wh.old": "", "new": "new"}},
		}
		return w.registry.Push(t, name, imagetest.Image{Layers: layers, Config: ocispec.ImageConfig{User: "app", Cmd: []string{"/run"}}})
	}
	w.plain, w.encrypted = build("plain:v1"), build("secret:v1", key)
	return w
}

func TestPullScripts(t *testing.T) {
	t.Parallel()
	needRoot(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/pull",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setupPull(t, env) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "inflict": inflict, "heal": heal, "requests": requests, "mounted": mounted, "empty": empty, "login": requireLogin,
		},
	})
}

// setupPull gives each script a world of its own, and a file system in store/
// that overlayfs can write to.
func setupPull(t *testing.T, env *testscript.Env) error {
	w := newPullWorld(t)
	env.Values[pullWorldKey] = w
	env.Setenv("REGISTRY", w.registry.Host())
	env.Setenv("PLAIN", w.plain.Reference)
	env.Setenv("SECRET", w.encrypted.Reference)
	env.Setenv("KBS", w.service.URL)
	env.Setenv("LAYER", string(w.plain.Layers[1].Digest))
	env.Setenv("MANIFEST", string(w.plain.Manifest.Digest))
	env.Setenv("HOME", env.WorkDir)
	secure := imagetest.NewTLS(t)
	env.Setenv("TLS", secure.Push(t, "app:v1", imagetest.Image{Layers: []imagetest.Layer{{}}}).Reference)
	env.Setenv("TLS_HOST", secure.Host())
	certs := filepath.Join(env.WorkDir, "certs", secure.Host())
	volume := filepath.Join(env.WorkDir, "volume")
	login := fmt.Sprintf(`{"auths":{%q:{"username":"me","password":"secret"}}}`, w.registry.Host())
	mirrors := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", "registry.example.com", w.registry.Host())
	only := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"insecureAcceptAnything"}]}}}`, w.registry.Host()+"/plain")
	err := errors.Join(os.Mkdir(volume, 0o755), unix.Mount("tmpfs", volume, "tmpfs", 0, "size=64m"))
	env.Defer(func() {
		if err := unix.Unmount(volume, 0); err != nil {
			t.Errorf("something is left mounted: %v", err)
		}
	})
	return errors.Join(err,
		os.MkdirAll(certs, 0o750),
		os.WriteFile(filepath.Join(certs, "ca.crt"), secure.CA(), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "login.json"), []byte(login), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "registries.conf"), []byte(mirrors), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "policy.json"), []byte(only), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "app.key"), w.service.Get("default/key/app"), 0o600))
}

func worldOf(ts *testscript.TestScript) *pullWorld {
	w, ok := ts.Value(pullWorldKey).(*pullWorld)
	if !ok {
		ts.Fatalf("no world")
	}
	return w
}

// inflict makes the registry fail in a way of imagetest's table when it serves
// the plain image: inflict CASE.
func inflict(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	for _, c := range imagetest.Faults("") {
		if c.String() == args[0] {
			c.Inflict(w.registry, w.plain)
			return
		}
	}
	ts.Fatalf("no fault is called %q", args[0])
}

func heal(ts *testscript.TestScript, _ bool, _ []string) {
	w := worldOf(ts)
	w.registry.Heal()
	w.registry.RequireLogin(nil)
}

func requireLogin(ts *testscript.TestScript, _ bool, _ []string) {
	worldOf(ts).registry.RequireLogin(&imagetest.Login{User: "me", Password: "secret", Bearer: true})
}

// requests fails unless the middle layers were asked for so often together:
// requests N.
func requests(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	n := len(w.registry.Requests(string(w.plain.Layers[1].Digest))) + len(w.registry.Requests(string(w.encrypted.Layers[1].Digest)))
	if fmt.Sprint(n) != args[0] {
		ts.Fatalf("%d requests", n)
	}
}

// mounted fails unless something is mounted at the path, or, negated, below it.
func mounted(ts *testscript.TestScript, neg bool, args []string) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(ts.MkAbs(args[0])))
	ts.Check(err)
	if neg != (len(mounts) == 0) {
		ts.Fatalf("mounted: %v", mounts)
	}
}

// empty fails if the folder has anything in it.
func empty(ts *testscript.TestScript, _ bool, args []string) {
	left, err := os.ReadDir(ts.MkAbs(args[0]))
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		ts.Fatalf("%s has %v, %v", args[0], left, err)
	}
}

// newVolume is a file system in memory.
func newVolume(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something is left mounted: %v", err)
		}
	})
	return dir
}

// coffer is this program as a command.
func coffer(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Args = append([]string{"coffer"}, args...)
	return cmd
}

func TestPullJSON(t *testing.T) {
	t.Parallel()
	dir, w := newVolume(t), newPullWorld(t)
	root, bundle := filepath.Join(dir, "store"), filepath.Join(dir, "bundle")
	cmd := coffer(t.Context(), "pull", w.encrypted.Reference, "--root", root, "--bundle", bundle, "--json", "--quiet",
		"--kbs", w.service.URL, "--attester", "sample")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var got pullReport
	d := json.NewDecoder(bytes.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil || d.More() {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Manifest != w.encrypted.Manifest.Digest || got.Bundle != bundle || len(got.Layers) != 3 || got.Seconds <= 0 || len(got.Stages) == 0 {
		t.Errorf("got %s", out)
	}
	if len(got.Attestations) != 1 || got.Attestations[0].TEE != "sample" || w.service.Handshakes() != 1 {
		t.Errorf("attestations %+v, %d handshakes", got.Attestations, w.service.Handshakes())
	}
	for i, l := range got.Layers {
		want := w.encrypted.Layers[i]
		if l.Digest != want.Digest || l.ChainID != want.ChainID || l.Size != want.Size || l.Unpacked <= 0 || l.Cached {
			t.Errorf("layer %d: %+v", i, l)
		}
		if info, err := os.Stat(l.Path); err != nil || !info.IsDir() {
			t.Errorf("layer %d: %v", i, err)
		}
		for _, stage := range []string{"fetch", "unwrap", "decrypt", "decompress", "apply", "verify", "commit"} {
			if _, ok := l.Seconds[events.Stage(stage)]; !ok {
				t.Errorf("layer %d: no time for %s in %v", i, stage, l.Seconds)
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(bundle, "rootfs", "new")); err != nil || string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
	imageCommands(t, root, got)
	for range 2 { // the second time there is nothing to do
		if out, err := coffer(t.Context(), "bundle", "remove", bundle, "--root", root).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v: %s", err, out)
		}
	}
	out, err = coffer(t.Context(), "image", "remove", w.encrypted.Reference, "--root", root).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "3 layers") {
		t.Errorf("%v: %s", err, out)
	}
	if left, err := os.ReadDir(filepath.Join(root, "layers")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are left", left, err)
	}
}

// imageCommands sees a pulled image, whose bundle is there, in the list.
func imageCommands(t *testing.T, root string, pulled pullReport) {
	t.Helper()
	out, err := coffer(t.Context(), "image", "list", "--root", root, "--json").Output()
	var images []imageReport
	if err == nil {
		err = json.Unmarshal(out, &images)
	}
	if err != nil || len(images) != 1 || images[0].Manifest != pulled.Manifest || !images[0].InUse || images[0].Size <= 0 || len(images[0].Layers) != len(pulled.Layers) {
		t.Errorf("%v: %s", err, out)
	}
	out, err = coffer(t.Context(), "image", "list", "--root", root).Output()
	if err != nil || !strings.Contains(string(out), pulled.Manifest.Encoded()[:12]) || !strings.Contains(string(out), "yes") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = coffer(t.Context(), "image", "remove", pulled.Manifest.Encoded()[:12], "--root", root).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use") {
		t.Errorf("an image in use: %v: %s", err, out)
	}
	out, err = coffer(t.Context(), "image", "remove", "none.example/a:b", "--root", root).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not in the store") {
		t.Errorf("no such image: %v: %s", err, out)
	}
}

// TestPullInterrupt sends Ctrl-C in the middle of a layer.
func TestPullInterrupt(t *testing.T) {
	t.Parallel()
	dir, w := newVolume(t), newPullWorld(t)
	root, bundle, drawing := filepath.Join(dir, "store"), filepath.Join(dir, "bundle"), filepath.Join(dir, "pull.svg")
	stalled := string(w.plain.Layers[1].Digest)
	w.registry.Fail(stalled, imagetest.Fault{Stall: true, After: 100_000})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := coffer(ctx, "pull", w.plain.Reference, "--root", root, "--bundle", bundle, "--timeline", drawing, "--quiet", "--json")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-w.registry.Began(stalled)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != exitInterrupted || !strings.Contains(stderr.String(), "interrupt") || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0 {
		t.Errorf("%v, stdout %q, stderr %q", err, stdout.String(), stderr.String())
	}
	for _, name := range []string{filepath.Join(root, "staging"), filepath.Join(root, scratchDir), bundle} {
		if left, err := os.ReadDir(name); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
			t.Errorf("%s has %v, %v", name, left, err)
		}
	}
	if b, err := os.ReadFile(drawing); err != nil || !bytes.HasSuffix(b, []byte("</svg>\n")) {
		t.Errorf("timeline of %d bytes, %v", len(b), err)
	}
	w.registry.Heal()
	if out, err := coffer(ctx, "pull", w.plain.Reference, "--root", root, "--quiet").CombinedOutput(); err != nil {
		t.Errorf("afterwards: %v: %s", err, out)
	}
}
