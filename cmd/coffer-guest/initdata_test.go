// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/coffer-cc/coffer/attester"
	"github.com/coffer-cc/coffer/attester/initdata"
	"github.com/coffer-cc/coffer/attester/sample"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/kbs/kbstest"
)

// initData makes a document.
func initData(t *testing.T, algorithm string, entries map[string]string) *initdata.Document {
	t.Helper()
	text, err := toml.Marshal(map[string]any{"version": "0.1.0", "algorithm": algorithm, "data": entries})
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// onDevice writes it as a block device has it.
func onDevice(t *testing.T, d *initdata.Document) string {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(d.Text())); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := binary.LittleEndian.AppendUint64([]byte("initdata"), uint64(z.Len()))
	return writeFile(t, append(append(b, z.Bytes()...), make([]byte, 4096)...))
}

func writeFile(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// launched is a TEE with a field for init-data, whose evidence is sample evidence.
type launched struct {
	*sample.Attester
	field []byte
}

func (l launched) InitDataField(context.Context) (name string, value []byte, err error) {
	return "MRCONFIGID", l.field, nil
}

// unmeasured is a TEE that holds no init-data, and is not the sample one.
type unmeasured struct{ *sample.Attester }

func (unmeasured) TEE() string { return "snp" }

func machineOf(a attester.Attester) detector {
	return func(string, attester.Options) (attester.Attester, error) { return a, nil }
}

// everything is a registry that asks for a login and is trusted by one
// authority alone, and a KBS likewise.
type everything struct {
	registry       *imagetest.Registry
	kbs            *kbstest.Server
	key            imagetest.Key
	locked, denied imagetest.Pushed
	login          imagetest.Login
}

func newEverything(t *testing.T) *everything {
	t.Helper()
	e := &everything{
		registry: imagetest.NewTLS(t), kbs: kbstest.New(t, kbstest.Options{Sample: true, TLS: true}),
		key: imagetest.NewKey(t, "kbs:///default/key/1"), login: imagetest.Login{User: "me", Password: "pass-3c1f7b"},
	}
	e.locked = e.registry.Push(t, "team/locked:1", imagetest.Image{Layers: []imagetest.Layer{
		{Files: map[string]string{"etc/name": "inside"}, Compression: imagetest.Gzip, Key: &e.key},
	}})
	e.denied = e.registry.Push(t, "team/other:1", imagetest.Image{Layers: []imagetest.Layer{{Files: map[string]string{"a": "b"}}}})
	e.registry.RequireLogin(&e.login)
	e.kbs.Put("default/key/1", e.key.KEK)
	e.kbs.SetPolicy(`package policy
import rego.v1
default allow := false
allow if input.submods.cpu0["ear.veraison.annotated-evidence"].init_data_claims.role == "prod-81d2"
`)
	return e
}

func (e *everything) policy() string {
	return fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"digests","digests":[%q]}]}}}`,
		e.registry.Host()+"/team", e.locked.Manifest.Digest)
}

func (e *everything) logins(password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"username":"me","password":%q}}}`, e.registry.Host(), password)
}

// entries has all that a guest may have from its init-data.
func (e *everything) entries() map[string]string {
	return map[string]string{
		"role":            "prod-81d2",
		"policy.json":     e.policy(),
		"lookaside.yaml":  "docker: {}\n",
		"logins.json":     e.logins(e.login.Password),
		"registries.conf": fmt.Sprintf("[aliases]\n%q = %q\n", "app", e.registry.Host()+"/team/locked"),
		"registry.pem":    string(e.registry.CA()),
		"kbs.pem":         string(e.kbs.CA),
		"guest.toml": `[kbs]
url = "` + e.kbs.URL + `"
ca_file = "initdata:///kbs.pem"
[policy]
image = "initdata:///policy.json"
signatures = "initdata:///lookaside.yaml"
[registry]
config_file = "initdata:///registries.conf"
credentials = "initdata:///logins.json"
ca_files = ["initdata:///registry.pem"]
`,
	}
}

// TestInitData and its parts are not parallel, as those of TestGuest.
func TestInitData(t *testing.T) { //nolint:paralleltest // see above
	needRoot(t)
	e := newEverything(t)
	for name, part := range map[string]func(*testing.T, *everything){
		"all from init-data":    testAllFromInitData,
		"by way of the sample":  testSampleInitData,
		"nothing stays on disk": testNothingOnDisk,
		"registries from KBS":   testRegistriesFromKBS,
	} {
		t.Run(name, func(t *testing.T) { part(t, e) })
	}
}

// testAllFromInitData has an init-data on a block device, that the TEE was
// launched with, and a file that says no more than where it is.
func testAllFromInitData(t *testing.T, e *everything) {
	doc := initData(t, "sha256", e.entries())
	tee := launched{sample.New(nil), initdata.Fit(doc.Digest(), 48)}
	g := startGuestOn(t, machineOf(tee), func(c *Config) { c.InitData = onDevice(t, doc) })
	app := e.locked
	app.Reference = "app:1" // an alias
	path, err := pull(t, g, app, e.locked.Chain())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(path, "etc/name")); err != nil || string(b) != "inside" {
		t.Errorf("file %q, %v", b, err)
	}
	if _, err := pull(t, g, e.denied, e.denied.Chain()); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "image policy") {
		t.Errorf("an image that the policy does not have: %v", err)
	}
}

// testSampleInitData attests with an init-data, without one, and with another.
func testSampleInitData(t *testing.T, e *everything) {
	entries := e.entries()
	text := initData(t, "sha384", entries).Text()
	for role, allowed := range map[string]bool{"prod-81d2": true, "test": false} {
		g := startGuest(t, func(c *Config) { c.InitData = writeFile(t, []byte(strings.ReplaceAll(text, "prod-81d2", role))) })
		_, err := pull(t, g, e.locked, e.locked.Chain())
		if allowed && err != nil || !allowed && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "kbs ")) {
			t.Errorf("role %s: %v", role, err)
		}
		g.stop()
	}
	bare := func(c *Config) { // as the init-data has it, but for the KBS to see
		c.KBS.URL, c.KBS.CAFile = e.kbs.URL, writeFile(t, e.kbs.CA)
		c.Registry.CAFiles = []string{writeFile(t, e.registry.CA())}
		c.Registry.Credentials = writeFile(t, []byte(e.logins(e.login.Password)))
	}
	g := startGuest(t, bare)
	if _, err := pull(t, g, e.locked, e.locked.Chain()); !errdefs.IsPermissionDenied(err) {
		t.Errorf("no init-data: %v", err)
	}
}

// testNothingOnDisk looks for what came from the KBS and the init-data in all
// that a guest has written.
func testNothingOnDisk(t *testing.T, e *everything) {
	entries := e.entries()
	e.kbs.Put("default/policy/image", []byte(e.policy()))
	e.kbs.Put("default/registry/logins", []byte(e.logins(e.login.Password)))
	e.kbs.Put("default/registry/conf", []byte(fmt.Sprintf("[[registry]]\nlocation = %q\n# remark-5ad0\n", e.registry.Host())))
	entries["guest.toml"] = strings.NewReplacer("initdata:///policy.json", "kbs:///default/policy/image",
		"initdata:///logins.json", "kbs:///default/registry/logins",
		"initdata:///registries.conf", "kbs:///default/registry/conf").Replace(entries["guest.toml"])
	var dir string
	g := startGuest(t, func(c *Config) {
		c.InitData = writeFile(t, []byte(initData(t, "sha512", entries).Text()))
		dir = filepath.Dir(c.Image.WorkDir)
		c.Attester.EventLog = filepath.Join(dir, "events")
	})
	if _, err := pull(t, g, e.locked, e.locked.Chain()); err != nil {
		t.Fatal(err)
	}
	if _, err := pull(t, g, e.denied, e.denied.Chain()); !errdefs.IsPermissionDenied(err) {
		t.Errorf("an image that the policy does not have: %v", err)
	}
	scan := func() {
		t.Helper()
		files := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files++
			for what, secret := range map[string][]byte{
				"the login": []byte(e.login.Password), "the policy": []byte(`"reject"`), "the init-data": []byte("prod-81d2"),
				"the registries configuration": []byte("remark-5ad0"), "the key": e.key.KEK, "an authority": []byte("-----BEGIN CERT"),
			} {
				if bytes.Contains(b, secret) {
					t.Errorf("%s is in %s", what, path)
				}
			}
			return err
		})
		if err != nil || files < 2 { // at least the layer and what is known of it
			t.Errorf("looked through %d files: %v", files, err)
		}
	}
	scan()
	g.stop()
	scan()
}

// testRegistriesFromKBS changes the registries configuration under a running
// guest.
func testRegistriesFromKBS(t *testing.T, e *everything) {
	e.kbs.Put("default/registry/conf", []byte("[aliases]\n\"app\" = \""+e.registry.Host()+"/team/locked\"\n"))
	asked := e.kbs.Count("resource")
	entries := e.entries()
	entries["guest.toml"] = strings.NewReplacer("initdata:///registries.conf", "kbs:///default/registry/conf",
		"[policy]\n", "[policy]\nrefresh = \"1ns\"\n").Replace(entries["guest.toml"])
	g := startGuest(t, func(c *Config) { c.InitData = writeFile(t, []byte(initData(t, "sha384", entries).Text())) })
	if n := e.kbs.Count("resource") - asked; n != 0 {
		t.Errorf("the start asks for %d resources", n)
	}
	app := e.locked
	app.Reference = "app:1"
	if _, err := pull(t, g, app, e.locked.Chain()); err != nil {
		t.Fatal(err)
	}
	e.kbs.Put("default/registry/conf", []byte(fmt.Sprintf("[[registry]]\nlocation = %q\nblocked = true\n", e.registry.Host())))
	if _, err := pull(t, g, e.locked, e.locked.Chain()); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "is blocked by the entry") {
		t.Errorf("blocked meanwhile: %v", err)
	}
	e.kbs.Put("default/registry/conf", []byte("[[registry"))
	if _, err := pull(t, g, e.locked, e.locked.Chain()); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "kbs:///default/registry/conf: registries configuration: line 1") {
		t.Errorf("malformed: %v", err)
	}
}

// An init-data that the TEE was not launched with ends the start, and nothing of
// it was used.
func TestInitDataNotMeasured(t *testing.T) {
	t.Parallel()
	doc := initData(t, "sha384", map[string]string{"guest.toml": "[kbs]\nurl = \"ftp://used\"\n"})
	other := bytes.Clone(doc.Digest())
	other[0] ^= 1
	path := onDevice(t, doc)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	none := func(name string, opts attester.Options) (attester.Attester, error) {
		return nil, errdefs.ErrNotFound
	}
	for name, tc := range map[string]struct {
		path   string
		detect detector
		is     func(error) bool
		want   []string
	}{
		"another":        {path, machineOf(launched{sample.New(nil), other}), errdefs.IsPermissionDenied, []string{fmt.Sprintf("%x", other), fmt.Sprintf("%x", doc.Digest()), "launch"}},
		"none":           {path, machineOf(launched{sample.New(nil), make([]byte, 48)}), errdefs.IsPermissionDenied, []string{"launched without init-data"}},
		"no field":       {path, machineOf(unmeasured{sample.New(nil)}), errdefs.IsNotImplemented, []string{"TEE snp has no field"}},
		"no TEE":         {path, none, errdefs.IsFailedPrecondition, []string{"this machine is no TEE"}},
		"genuine":        {path, machineOf(launched{sample.New(nil), doc.Digest()}), errdefs.IsInvalidArgument, []string{"kbs.url"}}, // it was used
		"no file":        {"/nonexistent", machineOf(launched{sample.New(nil), doc.Digest()}), os.IsNotExist, nil},
		"a pipe":         {fifo, machineOf(launched{sample.New(nil), doc.Digest()}), errdefs.IsInvalidArgument, []string{"neither a file nor a block device"}},
		"a char device":  {"/dev/zero", machineOf(launched{sample.New(nil), doc.Digest()}), errdefs.IsInvalidArgument, []string{"neither a file nor a block device"}},
		"not a document": {writeFile(t, []byte("x")), machineOf(launched{sample.New(nil), doc.Digest()}), errdefs.IsInvalidArgument, []string{"not TOML"}},
	} {
		c := quietConfig(t)
		c.InitData = tc.path
		c.Attester.TEE = "auto"
		_, err := newGuestOn(t.Context(), c, tc.detect, slog.New(slog.DiscardHandler))
		if name == "no file" {
			if err == nil || !strings.Contains(err.Error(), "initdata: /nonexistent: no such file") {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		if err == nil || !tc.is(err) || name != "genuine" && !strings.HasPrefix(err.Error(), "initdata: ") {
			t.Errorf("%s: error %v", name, err)
		}
		for _, want := range tc.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", name, err, want)
			}
		}
	}
}

func quietConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	c := Default()
	c.Sockets.LayerPuller = filepath.Join(dir, "guest.sock")
	c.Sockets.CDH = filepath.Join(dir, "cdh.sock")
	c.Sockets.AttestationAgent = filepath.Join(dir, "aa.sock")
	c.Image.WorkDir = filepath.Join(dir, "images")
	return c
}

// What the entry guest.toml does not name stays as the file has it.
func TestOverlaid(t *testing.T) {
	t.Parallel()
	c := Default()
	c.KBS.URL, c.KBS.CAFile = "https://file", "/ca.pem"
	c.Registry.Insecure = []string{"a.example", "b.example"}
	c.Policy.Image = "/policy.json"
	got, err := c.overlaid([]byte(`[attester]
measure = "required"
[kbs]
url = "https://measured"
[image.limits]
max_bytes = 5
[registry]
insecure = ["c.example"]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := c
	want.Attester.Measure, want.KBS.URL, want.Image.Limits.MaxBytes = "required", "https://measured", 5
	want.Registry.Insecure = []string{"c.example"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a.example", "b.example"}, c.Registry.Insecure); diff != "" {
		t.Errorf("the file's changed too: %s", diff)
	}
	for text, want := range map[string]string{
		"initdata = \"/x\"":             `guest.toml:1: unknown key "initdata"`,
		"[attester]\ntee = \"sample\"":  `guest.toml:2: unknown key "attester.tee"`,
		"[attester]\nevent_log = \"/\"": `guest.toml:2: unknown key "attester.event_log"`,
		"[sockets]\ncdh = \"/x\"":       `guest.toml:1: unknown key "sockets`,
		"[log]\nlevel = \"debug\"":      `guest.toml:1: unknown key "log`,
		"[kbs]\nurl = 3":                "guest.toml:2: ",
		"[kbs]\nurl = \"\"":             "guest.toml: kbs.ca_file: given without kbs.url",
		"[image]\nwork_dir = \"x\"":     "guest.toml: image.work_dir: ",
	} {
		if _, err := c.overlaid([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

// References to entries are checked at the start, wherever they may be.
func TestInitDataReferences(t *testing.T) {
	t.Parallel()
	doc := writeFile(t, []byte(initData(t, "sha384", map[string]string{"a": "[", "b": "{}"}).Text()))
	for _, tc := range []struct {
		want string
		edit func(*Config)
	}{
		{`policy.image: image policy: initdata:///x: the init-data has no entry "x"; it has ["a" "b"]`, func(c *Config) { c.Policy.Image = "initdata:///x" }},
		{"policy.image: initdata:///a: image policy: ", func(c *Config) { c.Policy.Image = "initdata:///a" }},
		{"policy.image: image policy: initdata:///a: no init-data is configured", func(c *Config) { c.InitData, c.Policy.Image = "", "initdata:///a" }},
		{"policy.signatures: initdata:///a: image policy: ", func(c *Config) { c.Policy.Image, c.Policy.Signatures = "kbs:///a/b/c", "initdata:///a" }},
		{"registry.config_file: initdata:///a: registries configuration: line 1", func(c *Config) { c.Registry.ConfigFile = "initdata:///a" }},
		{"registry.credentials: initdata:///a: registry credentials: ", func(c *Config) { c.Registry.Credentials = "initdata:///a" }},
		{"registry.ca_files: initdata:///x: the init-data has no entry", func(c *Config) { c.Registry.CAFiles = []string{"initdata:///x"} }},
		{"kbs.ca_file: initdata:///x: the init-data has no entry", func(c *Config) { c.KBS.URL, c.KBS.CAFile = "https://kbs.example", "initdata:///x" }},
		{"policy.image: image policy: ", func(c *Config) { c.Policy.Image = "initdata:x" }},
	} {
		c := quietConfig(t)
		c.Attester.TEE, c.InitData = "sample", doc
		tc.edit(&c)
		if _, err := newGuest(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("error %v, want %q", err, tc.want)
		}
	}
}
