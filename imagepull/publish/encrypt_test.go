// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

// allTypes has one layer of each media type, two of them with the same bytes.
func allTypes() image {
	big := strings.Repeat("layer bytes ", 50_000)
	return image{
		annotations: map[string]string{"org.example": "kept"},
		layers: []layer{
			{mediaType: ocispec.MediaTypeImageLayer, data: big},
			{mediaType: ocispec.MediaTypeImageLayerGzip, data: "gzip", annotations: map[string]string{"some.thing": "kept"}, embed: true},
			{mediaType: ocispec.MediaTypeImageLayerZstd, data: "zstd"},
			{mediaType: ocispec.MediaTypeImageLayerGzip, data: "gzip"},
			{mediaType: ocispec.MediaTypeImageLayerNonDistributableGzip, data: "foreign", urls: []string{"https://example.com/plain"}}, //nolint:staticcheck // still found in images
			{mediaType: ocispec.MediaTypeImageLayerGzip, data: ""},
		},
	}
}

// checkImage compares an encrypted image with the one it was made from.
func checkImage(t *testing.T, plain image, from, to string, was, is ocispec.Descriptor, dcs ...*config.DecryptConfig) ocispec.Manifest {
	t.Helper()
	source, destination := target(t, from), target(t, to)
	old := fetchJSON[ocispec.Manifest](t, source, was)
	got := fetchJSON[ocispec.Manifest](t, destination, is)
	if is.MediaType != ocispec.MediaTypeImageManifest || got.MediaType != is.MediaType {
		t.Errorf("manifest type %q, %q", is.MediaType, got.MediaType)
	}
	if got.Config.MediaType != ocispec.MediaTypeImageConfig || got.Config.Digest != old.Config.Digest {
		t.Errorf("configuration became %v", got.Config)
	}
	fetch(t, destination, got.Config)
	if diff := cmp.Diff(old.Annotations, got.Annotations, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if len(got.Layers) != len(plain.layers) {
		t.Fatalf("%d layers", len(got.Layers))
	}
	for i, desc := range got.Layers {
		want := plain.layers[i]
		if desc.Data != nil || desc.URLs != nil {
			t.Errorf("layer %d leads to the plain bytes: %v", i, desc)
		}
		for key, value := range want.annotations {
			if desc.Annotations[key] != value {
				t.Errorf("layer %d lost annotation %s", i, key)
			}
		}
		for _, dc := range dcs {
			if d := digest.FromBytes(oracle(t, dc, destination, desc)); d != digestOf(want.data) {
				t.Errorf("layer %d decrypts to %s, want %s", i, d, digestOf(want.data))
			}
		}
	}
	return got
}

func TestEncrypt(t *testing.T) {
	t.Parallel()
	alice, bob, carol := rsaKeys(t), ecKeys(t), rsaKeys(t)
	pkcs7, err := publish.PKCS7(carol.certificate)
	if err != nil {
		t.Fatal(err)
	}
	recipients := []publish.Recipient{kbsRecipient(kid), kbsRecipient(kid + "2"), jweRecipient(t, alice.public, bob.public), pkcs7}
	host := newRegistry(t)
	for name, place := range map[string]struct{ src, dst string }{
		"layout to layout":     {"oci:" + t.TempDir() + ":plain", "oci:" + filepath.Join(t.TempDir(), "new") + ":enc"},
		"layout to registry":   {"oci:" + t.TempDir() + ":plain", host + "/one:enc"},
		"registry to layout":   {host + "/two:plain", "oci:" + t.TempDir() + ":enc"},
		"registry to registry": {host + "/three:plain", host + "/three:enc"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := allTypes()
			source := target(t, place.src)
			was := newImage(t, source, plain)
			tag(t, source, was, "plain")

			spool := t.TempDir()
			result, err := encrypt(t.Context(), t, place.src, place.dst, publish.Options{Recipients: recipients, TempDir: spool})
			if err != nil {
				t.Fatal(err)
			}
			if len(result.Layers) != 5 || result.Images != 1 {
				t.Errorf("%d distinct layers of %d images", len(result.Layers), result.Images)
			}
			is, err := target(t, place.dst).Resolve(t.Context(), "enc")
			if err != nil || is.Digest != result.Image.Digest {
				t.Fatalf("tag names %v, %v", is, err)
			}
			got := checkImage(t, plain, place.src, place.dst, was, is, &config.DecryptConfig{}, alice.decrypt(), bob.decrypt(), carol.decrypt())
			if got.Layers[1].Digest != got.Layers[3].Digest {
				t.Error("a repeated layer was encrypted twice")
			}
			var types []string
			for _, desc := range got.Layers {
				types = append(types, strings.TrimPrefix(desc.MediaType, "application/vnd.oci.image.layer."))
			}
			want := []string{"v1.tar+encrypted", "v1.tar+gzip+encrypted", "v1.tar+zstd+encrypted", "v1.tar+gzip+encrypted",
				"nondistributable.v1.tar+gzip+encrypted", "v1.tar+gzip+encrypted"}
			if diff := cmp.Diff(want, types); diff != "" {
				t.Error(diff)
			}
			if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
				t.Errorf("temporary files: %v, %v", left, err)
			}
		})
	}
}

func TestEncryptDocker(t *testing.T) {
	t.Parallel()
	host := newRegistry(t)
	source := target(t, host+"/docker:plain")
	plain := image{manifestType: dockerManifestType, layers: []layer{
		{mediaType: dockerLayerType, data: "one"}, {mediaType: dockerForeignType, data: "two"},
		{mediaType: "application/vnd.docker.image.rootfs.diff.tar", data: "three"},
		{mediaType: "application/vnd.docker.image.rootfs.diff.tar.zstd", data: "four"},
	}}
	was := newImage(t, source, plain)
	list := pushJSON(t, source, dockerListType, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerListType, Manifests: []ocispec.Descriptor{was},
	})
	tag(t, source, list, "plain")
	dst := "oci:" + t.TempDir() + ":enc"
	result, err := encrypt(t.Context(), t, host+"/docker:plain", dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}})
	if err != nil {
		t.Fatal(err)
	}
	index := fetchJSON[ocispec.Index](t, target(t, dst), result.Image)
	if index.MediaType != ocispec.MediaTypeImageIndex || len(index.Manifests) != 1 {
		t.Fatalf("index %+v", index)
	}
	checkImage(t, plain, host+"/docker:plain", dst, was, index.Manifests[0], &config.DecryptConfig{})
}

// newIndex writes an image for two platforms that share a layer, with an
// attestation of the first.
func newIndex(t *testing.T, name string) (amd, arm image, descs []ocispec.Descriptor) {
	t.Helper()
	source := target(t, name)
	shared := layer{mediaType: ocispec.MediaTypeImageLayerGzip, data: "shared"}
	amd = image{layers: []layer{shared, {mediaType: ocispec.MediaTypeImageLayerGzip, data: "amd"}}}
	arm = image{platform: ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"},
		layers: []layer{shared, {mediaType: ocispec.MediaTypeImageLayerGzip, data: "arm"}}}
	attestation := newImage(t, source, image{layers: []layer{{mediaType: "application/vnd.in-toto+json", data: "{}"}}})
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	descs = []ocispec.Descriptor{newImage(t, source, amd), newImage(t, source, arm), attestation}
	index := pushJSON(t, source, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: descs, Annotations: map[string]string{"org.example": "kept"},
	})
	tag(t, source, index, parse(t, name).Tag)
	return amd, arm, descs
}

func TestEncryptIndex(t *testing.T) {
	t.Parallel()
	src, dst := newRegistry(t)+"/index:plain", "oci:"+t.TempDir()+":enc"
	amd, arm, was := newIndex(t, src)
	result, err := encrypt(t.Context(), t, src, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Layers) != 3 || result.Images != 2 || len(result.Dropped) != 1 {
		t.Errorf("%d layers, %d images, %d dropped", len(result.Layers), result.Images, len(result.Dropped))
	}
	index := fetchJSON[ocispec.Index](t, target(t, dst), result.Image)
	if len(index.Manifests) != 2 || index.Annotations["org.example"] != "kept" {
		t.Fatalf("index %+v", index)
	}
	for i, plain := range []image{amd, arm} {
		if diff := cmp.Diff(was[i].Platform, index.Manifests[i].Platform); diff != "" {
			t.Error(diff)
		}
		checkImage(t, plain, src, dst, was[i], index.Manifests[i], &config.DecryptConfig{})
	}
	layoutIndex, err := os.ReadFile(filepath.Join(parse(t, dst).Layout, "index.json"))
	if err != nil || strings.Count(string(layoutIndex), `"digest"`) != 1 {
		t.Errorf("the layout's index lists more than the root: %s, %v", layoutIndex, err)
	}
}

func TestEncryptPlatform(t *testing.T) {
	t.Parallel()
	src := newRegistry(t) + "/platform:plain"
	_, arm, was := newIndex(t, src)
	single := strings.Replace(src, ":plain", "@"+was[1].Digest.String(), 1)
	for _, from := range []string{src, single} {
		dst := "oci:" + t.TempDir() + ":enc"
		platform, err := publish.ParsePlatform("linux/arm64")
		if err != nil {
			t.Fatal(err)
		}
		result, err := encrypt(t.Context(), t, from, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}, Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, arm, src, dst, was[1], result.Image, &config.DecryptConfig{})

		platform.Architecture = "s390x"
		_, err = encrypt(t.Context(), t, from, dst, publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}, Platform: platform})
		if err == nil || !strings.Contains(err.Error(), "linux/arm64") {
			t.Errorf("error %v does not say what there is", err)
		}
	}
}

// TestLayoutIndex checks what happens to other images in a layout.
func TestLayoutIndex(t *testing.T) {
	t.Parallel()
	src, dir := "oci:"+t.TempDir()+":plain", t.TempDir()
	source := target(t, src)
	tag(t, source, newImage(t, source, allTypes()), "plain")
	options := publish.Options{Recipients: []publish.Recipient{kbsRecipient(kid)}}
	digests := map[string]digest.Digest{}
	for _, name := range []string{"a", "b", "a", "c"} {
		result, err := encrypt(t.Context(), t, src, "oci:"+dir+":"+name, options)
		if err != nil {
			t.Fatal(err)
		}
		digests[name] = result.Image.Digest
	}
	store := target(t, "oci:"+dir+":a")
	for name, want := range digests {
		got, err := store.Resolve(t.Context(), name)
		if err != nil || got.Digest != want {
			t.Errorf("tag %s: %s, %v, want %s", name, got.Digest, err, want)
		}
	}
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(entries) != 3 {
		t.Errorf("the layout has %v, %v", entries, err)
	}
	if report, err := publish.Inspect(t.Context(), parse(t, "oci:"+dir+"@"+digests["b"].String()), publish.Access{}); err != nil {
		t.Errorf("%v, %v", report, err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	src := "oci:" + t.TempDir() + ":plain"
	source := target(t, src)
	tag(t, source, newImage(t, source, allTypes()), "plain")
	var mu sync.Mutex
	sums := map[publish.Stage]map[digest.Digest]int64{publish.Encrypting: {}, publish.Pushing: {}, publish.Finished: {}}
	result, err := encrypt(t.Context(), t, src, "oci:"+t.TempDir(), publish.Options{
		Recipients: []publish.Recipient{kbsRecipient(kid)},
		Progress: func(e publish.Event) {
			mu.Lock()
			defer mu.Unlock()
			sums[e.Stage][e.Layer.Digest] = max(sums[e.Stage][e.Layer.Digest], e.Done)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for stage, done := range sums {
		for _, l := range result.Layers {
			if done[l.Plain.Digest] != l.Plain.Size {
				t.Errorf("%s of %s: %d bytes of %d", stage, l.Plain.Digest, done[l.Plain.Digest], l.Plain.Size)
			}
		}
	}
}
