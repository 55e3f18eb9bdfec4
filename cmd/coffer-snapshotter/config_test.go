// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshotter.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultFile(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"config", "default"}, &out); err != nil {
		t.Fatal(err)
	}
	// Every key is in the file, with the value that its absence has.
	got := Config{Registries: []string{"x"}}
	c, err := loadConfig(write(t, out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(); err == nil {
		t.Error("an empty configuration is valid")
	}
	for _, key := range []string{"root", "address", "containerd_address", "guest_socket", "registries", "level", "max_bytes", "credentials_file", "ca_files", "metrics_address"} {
		if !strings.Contains(out.String(), "\n"+key+" = ") {
			t.Errorf("the default file does not show %s", key)
		}
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"rooot = 'x'":                                    "rooot",
		"root = 'x'":                                     "root = \"x\" must be an absolute path",
		"guest_socket = ''":                              "guest_socket",
		"registries = ['r.example']":                     "not host:port",
		"root = 1":                                       ":1:",
		"[log]\nlevel = 'loud'":                          "loud",
		"[cache]\naddres = 'x'":                          "cache.addres",
		"[cache]\naddress = 'x'":                         "cache.address: \"x\" is neither",
		"[cache]\naddress = 'h:1'":                       "cache.registries",
		"[cache]\nmetrics_address = 'h:1'":               "without cache.address",
		"[cache]\naddress = 'h:1'\nregistries = ['r/a']": "cache.registries: registry \"r/a\"",
		"[cache]\naddress = 'h:1'\nregistries = ['r']\nmax_bytes = 0":                  "cache.max_bytes",
		"[cache]\naddress = 'h:1'\nregistries = ['r']\nroot = 'x'":                     "cache.root",
		"[cache]\naddress = 'h:1'\nregistries = ['r']\nmetrics_address = 'vsock://:1'": "cache.metrics_address",
	} {
		path := write(t, text)
		for _, args := range [][]string{{"-c", path}, {"serve", "--config", path}, {"config", "containerd", "-c", path}} {
			err := run(t.Context(), args, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v with %q: got %v", args, text, err)
			}
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	path := write(t, "address = '/run/a.sock'\nroot = '/data'")
	for _, tc := range []struct {
		args       string
		text, want string // of the output and the error
	}{
		{"config containerd -c " + path, "address = \"/run/a.sock\"", ""},
		{"config containerd --containerd 2.2 --route local --systemd-cgroup -c " + path, "SystemdCgroup = true", ""},
		{"config containerd --containerd 2.2 -c " + path, "version = 3", ""},
		{"config containerd --route moon -c " + path, "", "route"},
		{"config containerd extra", "", "unknown argument \"extra\""},
		{"config", "", "config default"},
		{"version", "coffer-snapshotter", ""},
		{"help", "config containerd", ""},
		{"-x", "", "see coffer-snapshotter help"},
		{"start", "", "unknown argument \"start\""},
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(tc.args), &out)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v", tc.args, err)
		}
		if !strings.Contains(out.String(), tc.text) {
			t.Errorf("%s: got %s", tc.args, out.String())
		}
	}
}
