// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/plugin"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

func TestStanza(t *testing.T) {
	t.Parallel()
	s := plugin.Stanza{Address: "/run/coffer/snapshotter.sock", Root: "/var/lib/coffer/\"odd\"", SystemdCgroup: true}
	b, err := s.TOML()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Version      int
		ProxyPlugins map[string]struct {
			Type, Address string
			Exports       map[string]string
		} `toml:"proxy_plugins"`
		Plugins map[string]map[string]any
	}
	if err := toml.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	if got.Version != 4 {
		t.Errorf("got version %d, want 4", got.Version)
	}
	proxy := got.ProxyPlugins[plugin.Name]
	if proxy.Type != "snapshot" || proxy.Address != s.Address {
		t.Errorf("got proxy plugin %+v", proxy)
	}
	exports := map[string]string{"root": s.Root, "enable_remote_snapshot_annotations": "true"}
	if diff := cmp.Diff(exports, proxy.Exports); diff != "" {
		t.Error(diff)
	}
	var unpack []string
	for _, entry := range got.Plugins["io.containerd.transfer.v1.local"]["unpack_config"].([]any) {
		unpack = append(unpack, entry.(map[string]any)["snapshotter"].(string))
	}
	if diff := cmp.Diff([]string{"overlayfs", plugin.Name}, unpack); diff != "" {
		t.Error(diff)
	}
	runtime := got.Plugins["io.containerd.cri.v1.runtime"]["containerd"].(map[string]any)["runtimes"].(map[string]any)[plugin.Name]
	want := map[string]any{
		"runtime_type": "io.containerd.runc.v2",
		"snapshotter":  plugin.Name,
		"options":      map[string]any{"SystemdCgroup": true},
	}
	if diff := cmp.Diff(want, runtime); diff != "" {
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
		"": "version = 4", "2.4": "version = 4", "v2.4.2": "version = 4", "2.10": "version = 4",
		"2.1": "version = 3", "2.3.1": "version = 3", "2.0": "", "1.7": "", "3.0": "", "new": "",
	} {
		b, err := plugin.Stanza{Address: "/a", Root: "/r", Containerd: release}.TOML()
		if want == "" {
			wantError(t, err, errdefs.ErrInvalidArgument, "containerd")
		} else if err != nil || !strings.Contains(string(b), "\n"+want+"\n") {
			t.Errorf("%q: got %v and\n%s", release, err, b)
		}
	}
}

func TestStanzaRefuses(t *testing.T) {
	t.Parallel()
	_, err := plugin.Stanza{Address: "/a", Root: "/r", Route: "moon"}.TOML()
	wantError(t, err, errdefs.ErrInvalidArgument, `use "local"`)
	_, err = plugin.Stanza{Address: "a", Root: "/r"}.TOML()
	wantError(t, err, errdefs.ErrInvalidArgument, "absolute")
}
