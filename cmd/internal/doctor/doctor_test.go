// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDefaults pins that the doctor takes the absence of a file for what the
// programs take it for.
func TestDefaults(t *testing.T) {
	t.Parallel()
	var s snapshotterSettings
	if _, err := read("../../coffer-snapshotter/default.toml", "", &s); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaultSnapshotterSettings(), s); diff != "" {
		t.Errorf("coffer-snapshotter: %s", diff)
	}
	var g guestSettings
	if _, err := read("../../coffer-guest/default.toml", "", &g); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(defaultGuestSettings(), g); diff != "" {
		t.Errorf("coffer-guest: %s", diff)
	}
}

// testNode is a node with a containerd of that release, and what it makes of its
// configuration.
func testNode(t *testing.T, version, config string) *node {
	t.Helper()
	n := newNode(Options{Now: time.Now, Proc: "/proc", Timeout: time.Second})
	n.snapshotter, n.snapshotterErr, n.guestErr = defaultSnapshotterSettings(), nil, nil
	n.containerd.version = version
	if err := toml.Unmarshal([]byte(config), &n.containerd.config); err != nil {
		t.Fatal(err)
	}
	n.containerd.plugins = []*introspectionapi.Plugin{{Type: "io.containerd.snapshotter.v1", ID: "coffer", Exports: map[string]string{
		"root": n.snapshotter.Root, annotationsKey: "true",
	}}}
	return n
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// want wants one finding of that level that has all the texts; with level OK,
// that there is nothing else.
func want(t *testing.T, what string, found []Finding, level Level, texts ...string) {
	t.Helper()
	if level == OK {
		for _, f := range found {
			if f.Level != OK {
				t.Errorf("%s: got %+v", what, f)
			}
		}
		return
	}
	for _, f := range found {
		if f.Level == level && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(f.Text+"\n"+f.Fix, text) }) {
			return
		}
	}
	t.Errorf("%s: no %s with %q in %+v", what, level, texts, found)
}

const runc2 = `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.coffer]
runtime_type = "io.containerd.runc.v2"
snapshotter = "coffer"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
`

const runc17 = `
[plugins.'io.containerd.grpc.v1.cri'.containerd]
snapshotter = "overlayfs"
discard_unpacked_layers = true
disable_snapshot_annotations = false
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.coffer]
runtime_type = "io.containerd.runc.v2"
snapshotter = "coffer"
`

func TestContainerdChecks(t *testing.T) {
	t.Parallel()
	platforms := "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.coffer]\nsnapshotter = 'coffer'\n"
	kata := strings.ReplaceAll(runc2, ".runc.", ".kata.")
	for name, tc := range map[string]struct {
		version, config string
		run             func(context.Context, *node) []Finding
		guest           bool
		level           Level
		texts           []string
	}{
		"2.0 without platforms":   {"v2.0.4", runc2, checkHandlers, false, Problem, []string{"second unpack", "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.coffer]", `snapshotter = "coffer"`}},
		"2.0 with platforms":      {"v2.0.4", runc2 + platforms, checkHandlers, false, OK, nil},
		"2.4 without platforms":   {"v2.4.2", runc2, checkHandlers, false, OK, nil},
		"1.7 handler":             {"1.7.35", runc17, checkHandlers, false, OK, nil},
		"1.7 handler elsewhere":   {"1.7.35", runc2, checkHandlers, false, OK, nil}, // no section: nothing to say
		"1.7 no handler":          {"1.7.35", strings.ReplaceAll(runc17, `"coffer"`, `"native"`), checkHandlers, false, Problem, []string{"no runtime handler", "--containerd 1.7 --main >> /etc/containerd/config.toml"}},
		"1.7 discards":            {"1.7.35", runc17, checkPull, false, Warning, []string{"[plugins.'io.containerd.grpc.v1.cri'.containerd]", "discard_unpacked_layers = false"}},
		"1.7 unpack":              {"1.7.35", runc17, checkUnpack, false, Warning, []string{"ctr images pull --local=false"}},
		"1.7 exports":             {"1.7.35", runc17, checkExports, false, OK, nil},
		"2.0 annotations":         {"2.0.1", runc2 + "disable_snapshot_annotations = false", checkPull, false, OK, nil},
		"no type":                 {"2.4.0", strings.ReplaceAll(runc2, "runtime_type", "x"), checkHandlers, false, Problem, []string{"has no runtime_type", "runtimes.coffer]"}},
		"runc in the guest route": {"2.4.0", runc2, checkHandlers, true, Problem, []string{"would be empty"}},
		"kata in the guest route": {"2.4.0", kata, checkHandlers, true, OK, nil},
		"kata without coffer":     {"2.4.0", strings.ReplaceAll(kata, `"coffer"`, `"overlayfs"`), checkHandlers, true, Warning, []string{"handler coffer keeps its images in \"overlayfs\"", `snapshotter = "coffer"`}},
		"all in coffer":           {"2.4.0", "[plugins.'io.containerd.cri.v1.images']\nsnapshotter='coffer'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type='r'", checkHandlers, false, OK, nil},
		"old":                     {"1.6.9", "", checkContainerd, false, Problem, []string{"too old"}},
	} {
		n := testNode(t, tc.version, tc.config)
		if tc.guest {
			n.snapshotter.Route = routeGuest
		}
		want(t, name, tc.run(t.Context(), n), tc.level, tc.texts...)
	}
}

func TestKata(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file, mount string
		level       Level
		texts       []string
	}{
		"fit":          {"[runtime]\ncreate_container_timeout = 1200\n[hypervisor.qemu]\nshared_fs = 'none'", "kata", OK, nil},
		"fit, rs":      {"[agent.kata]\ncreate_container_timeout = 1200", "kata", OK, nil},
		"timeout":      {"[runtime]\ncreate_container_timeout = 60", "kata", Warning, []string{"1m0s", "[runtime]", "create_container_timeout = 1200"}},
		"shared":       {"[hypervisor.qemu]\nshared_fs = 'virtio-fs'", "kata", Warning, []string{"virtio-fs", "[hypervisor.qemu]", `shared_fs = "none"`}},
		"not forced":   {"", "overlay", Problem, []string{"experimental_force_guest_pull = true"}},
		"forced":       {"[runtime]\ncreate_container_timeout = 1200\nexperimental_force_guest_pull = true", "overlay", OK, nil},
		"forced, rs":   {"[agent.kata]\ncreate_container_timeout = 1200\n[runtime]\nexperimental = ['force_guest_pull']", "overlay", OK, nil},
		"not readable": {"[", "kata", Problem, []string{"configuration of Kata"}},
	} {
		n := testNode(t, "2.4.0", runc2)
		n.opts.Kata, n.snapshotter.Route, n.snapshotter.Guest.Mount = write(t, tc.file), routeGuest, tc.mount
		want(t, name, checkKata(t.Context(), n), tc.level, tc.texts...)
	}
}

func TestHelper(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := testNode(t, "2.4.0", "")
	n.snapshotter.Route, n.containerd.path = routeGuest, "/nowhere:"+dir
	for _, name := range []string{"mount.fuse", n.snapshotter.Guest.Helper} {
		want(t, "without "+name, checkHelper(t.Context(), n), Problem, "containerd cannot find "+name)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "both", checkHelper(t.Context(), n), OK)
	n.snapshotter.Guest.Helper = "/opt/nydus-overlayfs-coffer"
	want(t, "path", checkHelper(t.Context(), n), Problem, "/opt/nydus-overlayfs-coffer")
	n.snapshotter.Guest.Mount = mountOverlay
	want(t, "overlay", checkHelper(t.Context(), n), OK)
}

func TestKubelet(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		file  string
		guest bool
		level Level
		texts []string
	}{
		"default timeout": {"featureGates: {RuntimeClassInImageCriApi: true}", true, Warning, []string{"2m0s", "runtimeRequestTimeout: 20m"}},
		"no gate":         {"runtimeRequestTimeout: 30m", true, Warning, []string{"RuntimeClassInImageCriApi: true", pullHandlerKey}},
		"fit":             {"runtimeRequestTimeout: 30m\nfeatureGates:\n  RuntimeClassInImageCriApi: true", true, OK, nil},
		"local":           {"featureGates: {RuntimeClassInImageCriApi: true}", false, OK, nil},
		"not YAML":        {"\t", false, Problem, []string{"configuration of kubelet"}},
	} {
		n := testNode(t, "2.4.0", runc2)
		n.opts.Kubelet = write(t, tc.file)
		if tc.guest {
			n.snapshotter.Route = routeGuest
		}
		want(t, name, checkKubelet(t.Context(), n), tc.level, tc.texts...)
	}
}

func TestKBS(t *testing.T) {
	t.Parallel()
	status := http.StatusMethodNotAllowed
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/kbs/v0/auth" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(status)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it does not like what the first ones send
	server.StartTLS()
	t.Cleanup(server.Close)
	n := testNode(t, "2.4.0", "")
	ask := func() []Finding { return checkKBS(t.Context(), n) }
	n.guest.KBS.URL = ""
	want(t, "none", ask(), Warning, "encrypted images are refused", "[kbs]")
	n.guest.KBS.URL = server.URL
	want(t, "unknown authority", ask(), Problem, "ca_file")
	n.guest.KBS.CAFile = write(t, "no certificate")
	want(t, "wrong file", ask(), Problem, "no PEM certificate")
	n.guest.KBS.CAFile = ""
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	n.opts.Transport = transport
	want(t, "fit", ask(), OK)
	n.opts.Now = func() time.Time { return time.Now().Add(5 * time.Minute) }
	want(t, "clock", ask(), Problem, "differ by 5m", "timedatectl")
	n.opts.Now = func() time.Time { return server.Certificate().NotAfter.Add(-time.Hour) }
	want(t, "certificate", ask(), Warning, "its certificate ends on")
	n.opts.Now = time.Now
	status = http.StatusBadGateway
	want(t, "broken", ask(), Problem, "502")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.guest.KBS.URL = "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, "nobody", ask(), Problem, "connection refused", "curl -v "+n.guest.KBS.URL)
	n.guest.KBS.URL = "kbs.example"
	want(t, "no URL", ask(), Problem, "is not http(s)://")
}

func TestMachine(t *testing.T) {
	t.Parallel()
	n := testNode(t, "2.4.0", "")
	n.opts.Proc = t.TempDir()
	if err := os.WriteFile(filepath.Join(n.opts.Proc, "filesystems"), []byte("nodev\ttmpfs\n\text4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "no overlay", checkKernel(t.Context(), n), Problem, "modprobe overlay")
	if got := existing("/proc/self/none/of/these"); got != "/proc/self" {
		t.Errorf("existing: %s", got)
	}
	n.snapshotter.Address = filepath.Join(t.TempDir(), "s")
	want(t, "no socket", checkSnapshotter(t.Context(), n), Problem, "there is no socket", "systemctl enable --now coffer-snapshotter")
	if err := os.WriteFile(n.snapshotter.Address, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, "a file", checkSnapshotter(t.Context(), n), Problem, "is not a socket")
	n.snapshotter.Root = t.TempDir()
	if err := os.MkdirAll(filepath.Join(n.snapshotter.Root, "snapshots", "removed-3"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.containerd.err = os.ErrNotExist
	want(t, "trash", checkLeftovers(t.Context(), n), Warning, "1 folders")
}

func TestConfigFlag(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                            "/etc/containerd/config.toml",
		"--log-level debug":           "/etc/containerd/config.toml",
		"-c /a":                       "/a",
		"--root /r --config /b":       "/b",
		"--config=/c --address /sock": "/c",
	} {
		if got := configFlag(strings.Fields(args)); got != want {
			t.Errorf("%q: got %s, want %s", args, got, want)
		}
	}
}

func TestFilesInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.toml": "imports = ['d/*.toml', 'main.toml']\n[proxy_plugins.coffer]\ntype = 'x'", "d/b.toml": "[proxy_plugins.coffer]\naddress = 'b'",
		"d/a.toml": "[proxy_plugins.coffer]\naddress = 'a'", "d/c.toml": "[",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := daemon{files: readFiles(filepath.Join(dir, "main.toml"))}
	for key, want := range map[string]string{"address": "d/b.toml", "type": "main.toml"} {
		if got := d.last("proxy_plugins", "coffer", key); got != filepath.Join(dir, want) {
			t.Errorf("%s is last in %s", key, got)
		}
	}
	if got := d.last("none"); got != "" {
		t.Errorf("got %s", got)
	}
}
