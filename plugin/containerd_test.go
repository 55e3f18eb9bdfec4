// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/plugin"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

// update is a flag of this test binary: rewrite the golden files.
var update = flag.Bool("update", false, "rewrite golden files") //nolint:gochecknoglobals // the flag package works this way

// section is a path into a decoded TOML file.
func section(t *testing.T, b []byte, path ...string) any {
	t.Helper()
	var at any
	var file map[string]any
	if err := toml.Unmarshal(b, &file); err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	at = file
	for _, key := range path {
		table, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = table[key]
	}
	return at
}

func unpackInto(t *testing.T, b []byte) (names []string) {
	t.Helper()
	list, _ := section(t, b, "plugins", "io.containerd.transfer.v1.local", "unpack_config").([]any)
	for _, entry := range list {
		names = append(names, entry.(map[string]any)["snapshotter"].(string))
	}
	return names
}

func TestStanza(t *testing.T) {
	t.Parallel()
	s := plugin.Stanza{Address: "/run/coffer/snapshotter.sock", Root: "/var/lib/coffer/\"odd\"", SystemdCgroup: true}
	b, err := s.TOML()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type": "snapshot", "address": s.Address,
		"exports": map[string]any{"root": s.Root, "enable_remote_snapshot_annotations": "true"},
	}
	if diff := cmp.Diff(want, section(t, b, "proxy_plugins", plugin.Name)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"overlayfs", "erofs", plugin.Name}, unpackInto(t, b)); diff != "" {
		t.Error(diff)
	}
	want = map[string]any{
		"runtime_type": "io.containerd.runc.v2",
		"snapshotter":  plugin.Name,
		"options":      map[string]any{"SystemdCgroup": true},
	}
	if diff := cmp.Diff(want, section(t, b, "plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", plugin.Name)); diff != "" {
		t.Error(diff)
	}
}

// TestStanzaGolden pins what is printed for each release that was seen to take
// it, of both routes.
func TestStanzaGolden(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("the files name amd64")
	}
	for _, release := range []string{"1.7", "2.0", "2.1", "2.2", "2.3", "2.4"} {
		for _, route := range []string{plugin.RouteLocal, plugin.RouteGuest} {
			s := plugin.Stanza{Address: "/run/coffer/snapshotter.sock", Root: "/var/lib/coffer/snapshotter", Containerd: release, Route: route}
			golden(t, release+"-"+route+".toml", s.TOML)
			if release == "1.7" {
				golden(t, release+"-"+route+"-main.toml", s.Main)
			}
		}
	}
}

func golden(t *testing.T, name string, print func() ([]byte, error)) {
	t.Helper()
	got, err := print()
	if err != nil {
		t.Fatal(err)
	}
	section(t, got) // is TOML
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

func TestStanzaOfHandlers(t *testing.T) {
	t.Parallel()
	s := plugin.Stanza{Name: "coffer-kata", Address: "/a", Root: "/r", Route: plugin.RouteGuest, SystemdCgroup: true, Unpack: []string{"overlayfs", "native", "coffer-kata"}}
	for _, h := range []string{"kata", "kata-qemu-coco-dev=io.containerd.kata-qemu-coco-dev.v2", "plain=io.containerd.runc.v2"} {
		s.Handlers = append(s.Handlers, plugin.ParseHandler(h))
	}
	b, err := s.TOML()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"kata": map[string]any{"snapshotter": s.Name},
		"kata-qemu-coco-dev": map[string]any{
			"snapshotter": s.Name, "runtime_type": "io.containerd.kata-qemu-coco-dev.v2",
			"privileged_without_host_devices": true, "pod_annotations": []any{"io.katacontainers.*"},
		},
		"plain": map[string]any{
			"snapshotter": s.Name, "runtime_type": "io.containerd.runc.v2", "options": map[string]any{"SystemdCgroup": true},
		},
	}
	if diff := cmp.Diff(want, section(t, b, "plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")); diff != "" {
		t.Error(diff)
	}
	for name := range want {
		if got := section(t, b, "plugins", "io.containerd.cri.v1.images", "runtime_platforms", name, "snapshotter"); got != s.Name {
			t.Errorf("images of %s are kept in %v", name, got)
		}
	}
	if diff := cmp.Diff([]string{"overlayfs", "native", s.Name}, unpackInto(t, b)); diff != "" {
		t.Error(diff)
	}
}

func TestStanzaLeavesRuncOptions(t *testing.T) {
	t.Parallel()
	b, err := plugin.Stanza{Address: "/a", Root: "/r"}.TOML()
	if err != nil || strings.Contains(string(b), "SystemdCgroup") {
		t.Errorf("got %v and\n%s", err, b)
	}
}

func TestStanzaVersions(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{
		"": "version = 4", "2.4": "version = 4", "v2.4.2": "version = 4", "2.10": "version = 4", "2.3.1": "version = 4",
		"2.2": "version = 3", "2.1": "version = 3", "2.0.14": "version = 3", "1.7.35": "version = 2",
		"1.6": "", "3.0": "", "new": "", "2": "",
	} {
		s := plugin.Stanza{Address: "/a", Root: "/r", Containerd: release}
		b, err := s.TOML()
		if want == "" {
			wantError(t, err, errdefs.ErrInvalidArgument, "containerd")
		} else if err != nil || !strings.Contains(string(b), "\n"+want+"\n") {
			t.Errorf("%q: got %v and\n%s", release, err, b)
		}
		if _, err := s.Main(); (err == nil) != (want == "version = 2") {
			t.Errorf("%q: lines of the main file: %v", release, err)
		}
	}
}

func TestStanzaRefuses(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]plugin.Stanza{
		`use "local" or "guest"`: {Address: "/a", Root: "/r", Route: "moon"},
		"absolute":               {Address: "a", Root: "/r"},
		"nerdctl takes":          {Address: "/a", Root: "/r", Name: "coffer-nydus"},
		"use letters":            {Address: "/a", Root: "/r", Name: "a.b"},
		"use NAME":               {Address: "/a", Root: "/r", Handlers: []plugin.Handler{{Name: "a]"}}},
		"with type":              {Address: "/a", Root: "/r", Handlers: []plugin.Handler{{Name: "a", Type: "\n"}}},
	} {
		_, err := s.TOML()
		wantError(t, err, errdefs.ErrInvalidArgument, want)
	}
}
