// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/publish"
	"github.com/coffer-cc/coffer/kbs/kbstest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"coffer": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setup(t, env) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "image": makeImage, "decrypts": decrypts, "stored": stored, "refvalue": refvalue,
		},
	})
}

// setup gives each script its own registries and key broker service.
func setup(t *testing.T, env *testscript.Env) error {
	good := newRegistry(nil)
	refusing := newRegistry(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			http.Error(w, "no", http.StatusForbidden)
			return true
		}
		return false
	})
	rude := newRegistry(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, `{"errors":[{"code":"X","message":"\u001b[2Jcleared"}]}`)
		return true
	})
	closed := newRegistry(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "login", http.StatusUnauthorized)
		return true
	})
	cutting := newRegistry(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			panic(http.ErrAbortHandler) //nolint:forbidigo // how a handler cuts a connection
		}
		return false
	})
	service, secure := kbstest.New(t, kbstest.Options{}), kbstest.New(t, kbstest.Options{TLS: true})
	env.Values[serviceKey] = service
	for name, server := range map[string]*httptest.Server{
		"REGISTRY": good, "REFUSING": refusing, "CUTTING": cutting, "RUDE": rude, "CLOSED": closed,
	} {
		env.Defer(server.Close)
		env.Setenv(name, strings.TrimPrefix(server.URL, "http://"))
	}
	env.Setenv("AWAY", "127.0.0.1:1") // a port that is given to nobody
	env.Setenv("KBS", service.URL)
	env.Setenv("SECURE", secure.URL)
	env.Setenv("SECURE_HOST", strings.TrimPrefix(secure.URL, "https://"))
	login := fmt.Sprintf(`{"auths":{%q:{"auth":"bWU6c2VjcmV0"}}}`, env.Getenv("CLOSED")) // me:secret
	return errors.Join(
		os.WriteFile(filepath.Join(env.WorkDir, "admin.token"), []byte(service.AdminToken+"\n"), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "secure.token"), []byte(secure.AdminToken+"\n"), 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), secure.CA, 0o600),
		os.WriteFile(filepath.Join(env.WorkDir, "login.json"), []byte(login), 0o600))
}

func newRegistry(misbehave func(http.ResponseWriter, *http.Request) bool) *httptest.Server {
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if misbehave == nil || !misbehave(w, r) {
			good.ServeHTTP(w, r)
		}
	}))
}

const serviceKey = "kbs" // of testscript.Env.Values

// stored writes what the service holds into a file: stored ID FILE.
// Negated, it fails unless there is nothing: ! stored ID.
func stored(ts *testscript.TestScript, neg bool, args []string) {
	service, ok := ts.Value(serviceKey).(*kbstest.Server)
	if !ok {
		ts.Fatalf("no service")
	}
	data := service.Get(args[0])
	if neg != (data == nil) {
		ts.Fatalf("%s: stored %v", args[0], data != nil)
	}
	if !neg {
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
	}
}

// refvalue asks the service for a reference value: refvalue NAME.
func refvalue(ts *testscript.TestScript, _ bool, args []string) {
	req, err := http.NewRequest(http.MethodGet, ts.Getenv("KBS")+"/kbs/v0/reference-value/"+args[0], nil)
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile("admin.token")))
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}

// exits runs a command that must end with this code and, on failure, with one
// line of stderr.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if want, err := strconv.Atoi(args[0]); err != nil || code != want {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
	text := ts.ReadFile("stderr")
	if !strings.HasPrefix(text, "coffer: ") || strings.Count(text, "\n") != 1 {
		ts.Fatalf("stderr is not one line of coffer's: %q", text)
	}
}

// makeImage writes an image of two layers into an OCI layout: image DIR TAG.
func makeImage(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(writeImage(ts.MkAbs(args[0]), args[1]))
}

func writeImage(dir, tag string) error {
	ctx := context.Background()
	store, err := oci.New(dir)
	if err != nil {
		return err
	}
	push := func(mediaType, data string) ocispec.Descriptor {
		desc := content.NewDescriptorFromBytes(mediaType, []byte(data))
		err = errors.Join(err, store.Push(ctx, desc, strings.NewReader(data)))
		return desc
	}
	manifest, encodeErr := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(ocispec.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64"}`),
		Layers: []ocispec.Descriptor{
			push(ocispec.MediaTypeImageLayerGzip, dir+" layer one"), push(ocispec.MediaTypeImageLayer, dir+" layer two"),
		},
	})
	root := push(ocispec.MediaTypeImageManifest, string(manifest))
	return errors.Join(err, encodeErr, store.Tag(ctx, root, tag))
}

// decrypts takes an image apart the way the puller in the TEE does: decrypts
// REF KEYFILE. It fails if a layer is not authentic.
func decrypts(ts *testscript.TestScript, neg bool, args []string) {
	err := decryptImage(ts.Getenv("WORK"), args[0], []byte(ts.ReadFile(args[1])))
	if neg == (err == nil) {
		ts.Fatalf("decrypt %s: %v", args[0], err)
	}
}

func decryptImage(work, name string, kek []byte) error {
	ref, err := publish.ParseReference(name)
	if err != nil {
		return err
	}
	var from interface {
		content.Fetcher
		content.Resolver
	}
	at := ref.Tag
	if ref.Layout != "" {
		from, err = oci.New(filepath.Join(work, ref.Layout))
	} else {
		repo, repoErr := remote.NewRepository(ref.Registry + "/" + ref.Repository)
		repo.PlainHTTP = true
		from, err = repo, repoErr
	}
	if err != nil {
		return err
	}
	ctx := context.Background()
	desc, err := from.Resolve(ctx, at)
	if err != nil {
		return err
	}
	data, err := content.FetchAll(ctx, from, desc)
	if err != nil {
		return err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		blob, err := content.FetchAll(ctx, from, layer)
		if err != nil {
			return err
		}
		if err := decryptLayer(layer, blob, kek); err != nil {
			return err
		}
	}
	return nil
}

func decryptLayer(layer ocispec.Descriptor, blob, kek []byte) error {
	packets, err := layercrypt.KeyPackets(layer.Annotations)
	if err != nil {
		return err
	}
	for _, p := range packets {
		if p.Scheme != keywrap.Scheme {
			continue
		}
		packet, err := keywrap.ParsePacket(p.Data)
		if err != nil {
			return err
		}
		options, err := keywrap.Unwrap(kek, packet)
		if err != nil {
			continue // another recipient's
		}
		private, err := layercrypt.ParsePrivateOptions(options)
		if err != nil {
			return err
		}
		if private.Digest == "" {
			return errors.New("the private options do not name the plain layer")
		}
		public, err := layercrypt.PublicOptionsOf(layer.Annotations)
		if err != nil {
			return err
		}
		reader, err := layercrypt.NewReader(bytes.NewReader(blob), public, private)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, reader); err != nil {
			return err
		}
		return reader.Verify(layercrypt.Expect{Digest: layer.Digest.String(), Size: layer.Size})
	}
	return fmt.Errorf("layer %s has no packet that this key opens", layer.Digest)
}

// TestInterrupt sends Ctrl-C in the middle of an upload.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	uploading := make(chan struct{})
	var once sync.Once
	server := newRegistry(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		once.Do(func() { close(uploading) })
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return true
	})
	t.Cleanup(server.Close)
	dir, temp := t.TempDir(), t.TempDir()
	if err := writeImage(filepath.Join(dir, "app"), "plain"); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "key")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Args = []string{
		"coffer", "encrypt", "oci:" + dir + "/app:plain", strings.TrimPrefix(server.URL, "http://") + "/app:enc",
		"--to", "kbs:///default/key/app", "--key", keyFile, "--temp-dir", temp,
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-uploading
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != exitInterrupted || !strings.HasPrefix(stderr.String(), "coffer: interrupt signal received; ") {
		t.Errorf("%v, stderr %q", err, stderr.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("temporary files: %v, %v", left, err)
	}
}
