// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/config"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

// skopeo returns a function that runs skopeo copy.
func skopeo(t *testing.T) func(args ...string) {
	t.Helper()
	binary, err := exec.LookPath("skopeo")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "skopeo") {
			t.Fatal("skopeo is required and not installed")
		}
		t.Skip("skopeo is not installed")
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) {
		t.Helper()
		args = append([]string{"--policy", policy, "copy", "--src-tls-verify=false", "--dest-tls-verify=false"}, args...)
		if out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// realLayers are layers that a decompressor takes.
func realLayers(t *testing.T, unique string) image {
	t.Helper()
	var plain bytes.Buffer
	archive := tar.NewWriter(&plain)
	if err := archive.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(unique))}); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Write([]byte(unique)); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	if _, err := zip.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return image{layers: []layer{
		{mediaType: ocispec.MediaTypeImageLayerGzip, data: zipped.String()},
		{mediaType: ocispec.MediaTypeImageLayerZstd, data: string(encoder.EncodeAll(plain.Bytes(), nil))},
	}}
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSkopeoEncrypts(t *testing.T) {
	t.Parallel()
	run := skopeo(t)
	alice := rsaKeys(t)
	src, dst := "oci:"+t.TempDir()+":plain", "oci:"+t.TempDir()+":enc"
	plain := realLayers(t, "encrypted by skopeo")
	source := target(t, src)
	tag(t, source, newImage(t, source, plain), "plain")
	run("--encryption-key", "jwe:"+writeFile(t, "public.pem", alice.public), src, dst)

	report, err := publish.Inspect(t.Context(), parse(t, dst), publish.Access{})
	if err != nil {
		t.Fatal(err)
	}
	if encrypted, all := report.Encrypted(); encrypted != 2 || all != 2 {
		t.Errorf("%d of %d layers encrypted", encrypted, all)
	}
	for _, l := range report.Images[0].Layers {
		if len(l.Problems) > 0 || len(l.Recipients) != 1 || l.Recipients[0].Scheme != "jwe" || l.Recipients[0].Algorithm != "RSA-OAEP" || l.Cipher == "" {
			t.Errorf("%+v", l)
		}
	}
}

func TestSkopeoDecrypts(t *testing.T) {
	t.Parallel()
	run := skopeo(t)
	host := newRegistry(t)
	for name, k := range map[string]keys{"rsa": rsaKeys(t), "ec": ecKeys(t)} {
		plain := realLayers(t, "decrypted by skopeo "+name)
		src, dst := host+"/"+name+":plain", host+"/"+name+":enc"
		source := target(t, src)
		tag(t, source, newImage(t, source, plain), "plain")
		_, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{
			kbsRecipient(kid), jweRecipient(t, rsaKeys(t).public, k.public),
		}})
		if err != nil {
			t.Fatal(err)
		}
		out := "oci:" + t.TempDir() + ":decrypted"
		run("--decryption-key", writeFile(t, "private.pem", k.private), "docker://"+dst, out)
		layout := target(t, out)
		desc, err := layout.Resolve(t.Context(), "decrypted")
		if err != nil {
			t.Fatal(err)
		}
		manifest := fetchJSON[ocispec.Manifest](t, layout, desc)
		for i, l := range manifest.Layers {
			if l.Digest != digestOf(plain.layers[i].data) || l.MediaType != plain.layers[i].mediaType || digest.FromBytes(fetch(t, layout, l)) != l.Digest {
				t.Errorf("%s: layer %d decrypted to %v", name, i, l)
			}
		}
	}
}

// TestSkopeoCopies lets skopeo carry an image that it has no key for.
func TestSkopeoCopies(t *testing.T) {
	t.Parallel()
	run := skopeo(t)
	host := newRegistry(t)
	src, dst, out := host+"/copy:plain", host+"/copy:enc", "oci:"+t.TempDir()+":copy"
	plain := realLayers(t, "copied by skopeo")
	source := target(t, src)
	was := newImage(t, source, plain)
	tag(t, source, was, "plain")
	if _, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}}); err != nil {
		t.Fatal(err)
	}
	run("docker://"+dst, out)
	is, err := target(t, out).Resolve(t.Context(), "copy")
	if err != nil {
		t.Fatal(err)
	}
	checkImage(t, plain, src, out, was, is, &config.DecryptConfig{})
}
