// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/cmd/internal/daemon"
	"github.com/coffer-cc/coffer/kbs/storage/bolt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDefaultConfig(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"config", "default"}, &out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := daemon.DecodeStrict(path, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("default.toml and Default differ: %s", diff)
	}
	var names map[string]any
	if err := toml.Unmarshal(out.Bytes(), &names); err != nil {
		t.Fatal(err)
	}
	all, err := toml.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if key, _, ok := strings.Cut(line, " = "); ok && !strings.Contains(out.String(), "\n"+strings.TrimSpace(key)+" = ") {
			t.Errorf("default.toml lacks %s", key)
		}
	}
}

func TestRefusedConfigs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "insecure_http",
		"[server]\ninsecure_http = true\naddress = \"x\"\n":                                                              "host:port",
		"[server]\ninsecure_http = true\ncertificate = \"a\"\n":                                                          "go together",
		"[server]\ninsecure_http = true\ncertificate = \"a\"\nprivate_key = \"b\"\n":                                     "excludes",
		"[server]\ninsecure_http = true\nmax_body = 1\n":                                                                 "max_body",
		"[server]\ninsecure_http = true\nmax_sessions = 0\n":                                                             "max_sessions",
		"[server]\ninsecure_http = true\nsession_lifetime = \"1ms\"\n":                                                   "session_lifetime",
		"[server]\ninsecure_http = true\n[storage]\npath = \"\"\n":                                                       "storage.path",
		"[server]\ninsecure_http = true\n[attestation]\nissuer = \"\"\n":                                                 "issuer",
		"[server]\ninsecure_http = true\n[attestation]\nsamples = true\n":                                                "samples",
		"[server]\ninsecure_http = true\n[policy]\ntimeout = \"1h\"\n":                                                   "policy.timeout",
		"[server]\ninsecure_http = true\n[log]\nlevel = \"loud\"\n":                                                      "log.level",
		"[server]\ninsecure_http = true\n[storage]\npath = \"DIR/db\"\n[admin]\npublic_key_file = \"DIR/none\"\n":        "public_key_file",
		"[server]\ninsecure_http = true\n[storage]\npath = \"DIR/db\"\n[attestation]\nreference_values = \"DIR/none\"\n": "reference_values",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "c.toml")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(t.Context(), []string{"serve", "-c", path}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v does not say %q", text, err, want)
		}
	}
	if err := run(t.Context(), nil, io.Discard); err == nil || !strings.Contains(err.Error(), "coffer-kbs init") {
		t.Errorf("no configuration: %v", err)
	}
}

func TestInit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "kbs")
	var out bytes.Buffer
	args := []string{"init", "--dir", dir, "--sample", "--listen", "127.0.0.1:0", "--tls", "--tls-name", "kbs.example"}
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"coffer-kbs serve -c " + dir, "WARNING", "https://", filepath.Join(dir, "ca.pem")} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q: %s", want, out.String())
		}
	}
	modes := map[string]os.FileMode{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		modes[e.Name()] = info.Mode().Perm()
	}
	want := map[string]os.FileMode{
		"coffer-kbs.toml": 0o600, "admin.key": 0o600, "admin.pub": 0o644, "admin.token": 0o600,
		"reference-values.json": 0o644, "ca.pem": 0o644, "server.pem": 0o644, "server.key": 0o600,
	}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Error(diff)
	}
	before, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), args, io.Discard); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("second init: %v", err)
	}
	if err := run(t.Context(), []string{"admin", "token", "--dir", dir, "--ttl", "1h"}, io.Discard); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil || bytes.Equal(before, after) {
		t.Errorf("the token was not replaced: %v", err)
	}
	if err := run(t.Context(), []string{"admin", "token", "--dir", dir, "--ttl", "87600h"}, io.Discard); err == nil {
		t.Error("a token for ten years")
	}
	if err := run(t.Context(), []string{"admin", "token", "--dir", t.TempDir()}, io.Discard); err == nil || !strings.Contains(err.Error(), "coffer-kbs init") {
		t.Errorf("token of an empty folder: %v", err)
	}
}

func TestInitNamesAReachableAddress(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"0.0.0.0:8080": "COFFER_KBS=https://localhost:8080 ", ":8080": "COFFER_KBS=https://localhost:8080 ",
		"[::]:8080": "COFFER_KBS=https://localhost:8080 ", "127.0.0.2:1": "COFFER_KBS=https://127.0.0.2:1 ",
		"kbs.example:443": "COFFER_KBS=https://kbs.example:443 ",
	} {
		dir := filepath.Join(t.TempDir(), "kbs")
		var out bytes.Buffer
		if err := run(t.Context(), []string{"init", "--dir", dir, "--tls", "--listen", listen}, &out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want) || !strings.Contains(out.String(), " COFFER_KBS_CA="+filepath.Join(dir, "ca.pem")+"\n") {
			t.Errorf("%s: %s", listen, out.String())
		}
	}
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"serv":                             "unknown command \"serv\" for coffer-kbs: see coffer-kbs --help",
		"config defualt":                   "unknown command \"defualt\" for coffer-kbs config",
		"serve c.toml":                     "takes no argument, got \"c.toml\": files and folders are named by flags",
		"init DIR/new":                     "takes no argument",
		"init --sampel":                    "unknown flag: --sampel: see coffer-kbs init --help",
		"init --dir DIR/file":              "not a directory",
		"init --dir DIR/new --tls-name x":  "add --tls",
		"init --dir DIR/new --listen 8080": "host:port",
		"init --dir DIR/new --listen localhost:99999": "at most 65535",
	} {
		err := run(t.Context(), strings.Fields(strings.ReplaceAll(line, "DIR", dir)), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestServe starts what init wrote and administers it over TLS.
func TestServe(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--tls", "--sample"} {
		dir := filepath.Join(t.TempDir(), "kbs")
		if err := run(t.Context(), []string{"init", "--dir", dir, "--listen", "127.0.0.1:0", flag}, io.Discard); err != nil {
			t.Fatal(err)
		}
		c, err := loadConfig(filepath.Join(dir, "coffer-kbs.toml"))
		if err != nil {
			t.Fatal(err)
		}
		store, err := bolt.Open(c.Storage.Path)
		if err != nil {
			t.Fatal(err)
		}
		handler, err := assemble(t.Context(), c, store, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		l, err := listen(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- serveOn(ctx, l, handler, slog.New(slog.DiscardHandler)) }()
		check(t, dir, flag == "--tls", l.Addr().String())
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
}

func check(t *testing.T, dir string, secure bool, address string) {
	t.Helper()
	url := "http://" + address
	transport := &http.Transport{DisableKeepAlives: true}
	if secure {
		pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		url, transport.TLSClientConfig = "https://"+address, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		old := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}}
		if resp, err := (&http.Client{Transport: old}).Get(url + "/healthz"); err == nil {
			resp.Body.Close()
			t.Error("TLS 1.2 was accepted")
		}
	}
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/kbs/v0/reference-value", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%d %s %v", resp.StatusCode, body, err)
	}
	if !secure && !strings.Contains(string(body), "launch_digest") {
		t.Errorf("sample reference values are not registered: %s", body)
	}
	req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/kbs/v0/auth", strings.NewReader(`{"version":"0.4.0","tee":"sample","extra-params":""}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err = transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if want := map[bool]int{true: http.StatusUnauthorized, false: http.StatusOK}[secure]; resp.StatusCode != want {
		t.Errorf("sample handshake with the service of --sample=%v: %d", !secure, resp.StatusCode)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := Default()
	c.Server.Address, c.Server.InsecureHTTP, c.Attestation.Sample = "0.0.0.0:8080", true, true
	warn(c, slog.New(slog.NewTextHandler(&out, nil)))
	for _, want := range []string{"SAMPLE EVIDENCE IS ACCEPTED", "plain HTTP beyond this machine", "nobody can administer"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no warning %q", want)
		}
	}
	out.Reset()
	c = Default()
	c.Server.InsecureHTTP, c.Admin.PublicKeyFile = true, "x"
	if warn(c, slog.New(slog.NewTextHandler(&out, nil))); out.Len() > 0 {
		t.Errorf("warnings without cause: %s", out.String())
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(at time.Time) {
		files, err := certificates("127.0.0.1:0", nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			path := filepath.Join(dir, f.name)
			if err := os.WriteFile(path, f.data, f.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(time.Unix(1000, 0))
	pair, err := loadKeyPair(filepath.Join(dir, certName), filepath.Join(dir, certKeyName))
	if err != nil {
		t.Fatal(err)
	}
	first, _ := pair.get(nil)
	if again, _ := pair.get(nil); again != first {
		t.Error("read again without need")
	}
	write(time.Unix(2000, 0))
	second, err := pair.get(nil)
	if err != nil || second == first {
		t.Errorf("not read again: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, certName), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := pair.get(nil); err != nil || got != second {
		t.Errorf("a damaged file replaced the certificate: %v", err)
	}
}
