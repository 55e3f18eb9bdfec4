// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt/config"
	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

func oneLayer(data string) image {
	return image{layers: []layer{{mediaType: ocispec.MediaTypeImageLayerGzip, data: data}}}
}

// files lists the regular files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, name)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

func blobFile(dir string, data string) string {
	return filepath.Join(dir, "blobs", "sha256", digestOf(data).Encoded())
}

func TestDamagedSource(t *testing.T) {
	t.Parallel()
	const good, bad = "the good layer", "the other layer"
	damages := map[string]func(name string) error{
		"flipped":   func(name string) error { return os.WriteFile(name, []byte("the wood layer"), 0o600) },
		"truncated": func(name string) error { return os.Truncate(name, 4) },
		"extended":  func(name string) error { return os.WriteFile(name, []byte(good+"!"), 0o600) },
		"absent":    os.Remove,
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, out := t.TempDir(), t.TempDir()
			source := target(t, "oci:"+dir)
			plain := oneLayer(bad)
			plain.layers = append(plain.layers, layer{mediaType: ocispec.MediaTypeImageLayerGzip, data: good})
			tag(t, source, newImage(t, source, plain), "plain")
			blob := blobFile(dir, good)
			if err := os.Chmod(blob, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := damage(blob); err != nil {
				t.Fatal(err)
			}
			options := publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}, TempDir: t.TempDir(), Parallel: 1}
			_, err := encrypt(t.Context(), t, "oci:"+dir+":plain", "oci:"+filepath.Join(out, "new")+":enc", options)
			if name == "absent" && !errdefs.IsNotFound(err) || name != "absent" && !errdefs.IsDataLoss(err) {
				t.Errorf("error %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), digestOf(good).String()) {
				t.Errorf("error %v does not name the layer", err)
			}
			if left := append(files(t, out), files(t, options.TempDir)...); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := target(t, "oci:"+dir)
	tag(t, source, newImage(t, source, oneLayer("plain")), "plain")
	encryptedLayer := image{layers: []layer{{mediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted", data: "x"}}}
	tag(t, source, newImage(t, source, encryptedLayer), "encrypted")
	tag(t, source, newImage(t, source, image{layers: []layer{{mediaType: "text/plain", data: "x"}}}), "text")
	broken := push(t, source, "text/plain", []byte("[]"))
	broken.MediaType = ocispec.MediaTypeImageManifest
	tag(t, source, broken, "broken")
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := newRegistry(t)
	plain, fresh := "oci:"+dir+":plain", "oci:"+filepath.Join(t.TempDir(), "new")+":v1"
	tests := []struct {
		name, src, dst string
		class          func(error) bool
		text           string
	}{
		{"encrypted already", "oci:" + dir + ":encrypted", fresh, errdefs.IsFailedPrecondition, "encrypted already"},
		{"not a layer", "oci:" + dir + ":text", fresh, errdefs.IsNotImplemented, "text/plain"},
		{"broken manifest", "oci:" + dir + ":broken", fresh, errdefs.IsInvalidArgument, "manifest sha256"},
		{"missing layout", "oci:" + dir + "/none:plain", fresh, errdefs.IsNotFound, "no OCI layout"},
		{"missing tag", "oci:" + dir + ":none", fresh, errdefs.IsNotFound, "no image tagged none: it has"},
		{"ambiguous", "oci:" + dir, fresh, errdefs.IsInvalidArgument, "holds 4 images: name one of"},
		{"same folder", plain, "oci:" + dir + "/../" + filepath.Base(dir) + ":enc", errdefs.IsInvalidArgument, "name another folder"},
		{"folder of something else", plain, "oci:" + other + ":enc", errdefs.IsInvalidArgument, "neither empty nor"},
		{"digest as destination", plain, host + "/a@" + someDigest, errdefs.IsInvalidArgument, "name a tag"},
		{"no such repository", host + "/none:v1", fresh, errdefs.IsNotFound, "repository none"},
		{"no such digest", host + "/none@" + someDigest, fresh, errdefs.IsNotFound, "registry " + host},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := encrypt(t.Context(), t, test.src, test.dst, publish.Options{
				Recipients: []publish.Recipient{kbsRecipient(kid)},
				Ready:      func(context.Context) error { t.Error("Ready was called"); return nil },
			})
			if !test.class(err) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want %q", err, test.text)
			}
		})
	}
	t.Run("no recipient", func(t *testing.T) {
		t.Parallel()
		if _, err := encrypt(t.Context(), t, plain, fresh, publish.Options{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not ready", func(t *testing.T) {
		t.Parallel()
		want := errors.New("no")
		out := filepath.Join(t.TempDir(), "new")
		_, err := encrypt(t.Context(), t, plain, "oci:"+out, publish.Options{
			Recipients: []publish.Recipient{kbsRecipient(kid)}, Ready: func(context.Context) error { return want },
		})
		if !errors.Is(err, want) || len(files(t, out)) > 0 {
			t.Errorf("error %v, files %v", err, files(t, out))
		}
	})
}

func TestKeysThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	k := rsaKeys(t)
	for name, test := range map[string]struct {
		key  []byte
		text string
	}{
		"private":     {k.private, "private key"},
		"certificate": {k.certificate, "holds a CERTIFICATE"},
		"text":        {[]byte("hello"), "neither PEM"},
		"damaged":     {k.public[:100], "damaged"},
		"empty":       {nil, "neither PEM"},
		"Ed25519":     {ed25519Key(t), "neither RSA nor EC"},
	} {
		_, err := publish.JWE(test.key)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: error %v, want %q", name, err, test.text)
		}
	}
	if _, err := publish.PKCS7(k.public); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v", err)
	}
}

func ed25519Key(t *testing.T) []byte {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// hostile is a registry that misbehaves on chosen requests.
func hostile(t *testing.T, misbehave func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !misbehave(w, r) {
			good.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func isUpload(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/")
}

func TestRegistryRefuses(t *testing.T) {
	t.Parallel()
	src := "oci:" + t.TempDir() + ":plain"
	source := target(t, src)
	tag(t, source, newImage(t, source, oneLayer("plain")), "plain")
	tests := map[int]struct {
		class func(error) bool
		text  string
	}{
		http.StatusUnauthorized:    {errdefs.IsUnauthorized, "--credentials"},
		http.StatusForbidden:       {errdefs.IsPermissionDenied, "no right"},
		http.StatusNotFound:        {errdefs.IsNotFound, "in repository app"},
		http.StatusTooManyRequests: {errdefs.IsUnavailable, "429"},
		http.StatusBadGateway:      {errdefs.IsUnavailable, "502"},
		http.StatusTeapot:          {errdefs.IsInvalidArgument, "418"},
	}
	for status, want := range tests {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			host := hostile(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
					http.Error(w, http.StatusText(status), status)
					return true
				}
				return false
			})
			access := publish.Access{HTTP: &http.Client{}}
			_, err := encrypt(t.Context(), t, src, host+"/app:enc", publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}, Access: access})
			if !want.class(err) || !strings.Contains(err.Error(), want.text) || !strings.Contains(err.Error(), "registry "+host) {
				t.Errorf("upload: error %v, want %q", err, want.text)
			}
			if err != nil && !strings.Contains(err.Error(), "tag enc of "+host+"/app is unchanged; 2 uploaded blobs") {
				t.Errorf("upload: error %v does not say what is left", err)
			}

			host = hostile(t, func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, http.StatusText(status), status)
				return true
			})
			_, err = publish.Inspect(t.Context(), parse(t, host+"/app:enc"), access)
			if !want.class(err) || !strings.Contains(err.Error(), want.text) {
				t.Errorf("inspect: error %v, want %q", err, want.text)
			}
		})
	}
}

func TestRegistryIsAway(t *testing.T) {
	t.Parallel()
	_, err := publish.Inspect(t.Context(), parse(t, "127.0.0.1:1/app:enc"), publish.Access{}) // a port that is given to nobody
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("error %v", err)
	}
}

func TestWrongScheme(t *testing.T) {
	t.Parallel()
	host, yes, no := newRegistry(t), func(string) bool { return true }, func(string) bool { return false }
	_, err := publish.Inspect(t.Context(), parse(t, host+"/app:enc"), publish.Access{PlainHTTP: no})
	if err == nil || !strings.Contains(err.Error(), "--plain-http "+host) {
		t.Errorf("https to an http registry: error %v", err)
	}
	server := httptest.NewUnstartedServer(registry.New())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "https://")
	_, err = publish.Inspect(t.Context(), parse(t, host+"/app:enc"), publish.Access{PlainHTTP: yes})
	if err == nil || !strings.Contains(err.Error(), "--https "+host) {
		t.Errorf("http to an https registry: error %v", err)
	}
	_, err = publish.Inspect(t.Context(), parse(t, host+"/app:enc"), publish.Access{PlainHTTP: no})
	if err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("unknown authority: error %v", err)
	}
}

// TestInterruptedTransfers cuts the first download and the first upload.
func TestInterruptedTransfers(t *testing.T) {
	t.Parallel()
	data := strings.Repeat("plain bytes ", 20_000)
	path := "/blobs/" + digestOf(data).String()
	var downloads, uploads atomic.Int32
	host := hostile(t, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, path) && downloads.Add(1) == 1:
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = io.WriteString(w, data[:len(data)/2])
		case isUpload(r) && r.ContentLength == int64(len(data)) && strings.Contains(r.URL.Path, "/out/") && uploads.Add(1) == 1:
			_, _ = io.CopyN(io.Discard, r.Body, int64(len(data)/2))
		default:
			return false
		}
		panic(http.ErrAbortHandler) //nolint:forbidigo // how a handler cuts a connection
	})
	src, dst := host+"/in:plain", host+"/out:enc"
	source := target(t, src)
	was := newImage(t, source, oneLayer(data))
	tag(t, source, was, "plain")
	result, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}})
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, oneLayer(data), src, dst, was, result.Image, &config.DecryptConfig{})
	if downloads.Load() < 2 || uploads.Load() < 2 {
		t.Errorf("%d downloads and %d uploads: nothing was cut", downloads.Load(), uploads.Load())
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	src, out := "oci:"+t.TempDir()+":plain", t.TempDir()
	source := target(t, src)
	tag(t, source, newImage(t, source, allTypes()), "plain")
	for _, stage := range []publish.Stage{publish.Encrypting, publish.Pushing, publish.Finished} {
		ctx, cancel := context.WithCancel(t.Context())
		options := publish.Options{
			Recipients: []publish.Recipient{kbsRecipient(kid)}, TempDir: t.TempDir(),
			Progress: func(e publish.Event) {
				if e.Stage == stage {
					cancel()
				}
			},
		}
		_, err := encrypt(ctx, t, src, "oci:"+filepath.Join(out, string(stage))+":enc", options)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error %v", stage, err)
		}
		if left := slices.Concat(files(t, options.TempDir), files(t, out)); len(left) > 0 {
			t.Errorf("%s: left behind: %v", stage, left)
		}
	}
}
