// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type testConfig struct {
	Log struct {
		Level string `toml:"level"`
	} `toml:"log"`
	Lifetime Duration `toml:"lifetime"`
	Tries    int      `toml:"tries"`
}

func TestDecodeStrict(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text, want string
	}{
		{"unknown key", "tries = 1\n\n[log]\nlevle = 'info'\n", `.toml:4: unknown key "log.levle"`},
		{"unknown table", "[logs]\nlevel = 'info'\n", `.toml:1: unknown key "logs`},
		{"wrong type", "tries = 1\n[log]\nlevel = 3\n", `.toml:3: key "log.level": cannot decode TOML integer into a value of type string`},
		{"syntax", "tries = 1\n= 3\n", ".toml:2: "},
		{"twice", "tries = 1\ntries = 2\n", ".toml:2: "},
		{"duration", "tries = 1\nlifetime = 'soon'\n", `"soon" is not a duration`},
		{"too large", "#" + strings.Repeat("x", maxConfig), "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var conf testConfig
			err := DecodeStrict(path, &conf)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with %q", err, c.want)
			}
		})
	}
}

func TestDecodeStrictKeepsDefaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("lifetime = '90s'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := testConfig{Tries: 7}
	if err := DecodeStrict(path, &conf); err != nil {
		t.Fatal(err)
	}
	if conf.Tries != 7 || time.Duration(conf.Lifetime) != 90*time.Second {
		t.Errorf("decoded %+v", conf)
	}
	if err := DecodeStrict(filepath.Join(t.TempDir(), "none.toml"), &conf); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("missing file: %v", err)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add("tries = 1\n[log]\nlevel = 'info'\n")
	f.Add("lifetime = '5m'\nx.y = [1, 2]\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var conf testConfig
		_ = DecodeStrict(path, &conf) // must not panic
	})
}
