// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/publish"
)

const (
	dockerManifestType = "application/vnd.docker.distribution.manifest.v2+json"
	dockerListType     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfigType   = "application/vnd.docker.container.image.v1+json"
	dockerLayerType    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerForeignType  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	kid = "kbs:///default/key/test"
)

// newRegistry starts a registry and returns its host:port.
func newRegistry(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func target(t *testing.T, name string) oras.Target {
	t.Helper()
	ref := parse(t, name)
	if ref.Layout != "" {
		store, err := oci.New(ref.Layout)
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	repo, err := remote.NewRepository(ref.Registry + "/" + ref.Repository)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	return repo
}

func parse(t *testing.T, name string) publish.Reference {
	t.Helper()
	ref, err := publish.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// image describes what newImage writes.
type image struct {
	manifestType string // "" means OCI's
	platform     ocispec.Platform
	layers       []layer
	annotations  map[string]string
}

type layer struct {
	mediaType   string
	data        string
	annotations map[string]string
	embed       bool
	urls        []string
}

func push(t *testing.T, to oras.Target, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	desc := content.NewDescriptorFromBytes(mediaType, data)
	if err := to.Push(t.Context(), desc, bytes.NewReader(data)); err != nil && !errors.Is(err, errdef.ErrAlreadyExists) {
		t.Fatal(err)
	}
	return desc
}

// newImage writes an image and returns its descriptor.
func newImage(t *testing.T, to oras.Target, img image) ocispec.Descriptor {
	t.Helper()
	manifestType, configType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	if img.manifestType != "" {
		manifestType, configType = img.manifestType, dockerConfigType
	}
	if img.platform.OS == "" {
		img.platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	}
	configData, err := json.Marshal(ocispec.Image{Platform: img.platform})
	if err != nil {
		t.Fatal(err)
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType,
		Config: push(t, to, configType, configData), Layers: []ocispec.Descriptor{}, Annotations: img.annotations,
	}
	for _, l := range img.layers {
		desc := push(t, to, l.mediaType, []byte(l.data))
		desc.Annotations, desc.URLs = l.annotations, l.urls
		if l.embed {
			desc.Data = []byte(l.data)
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	desc := pushJSON(t, to, manifestType, manifest)
	desc.Platform = &img.platform
	return desc
}

func pushJSON(t *testing.T, to oras.Target, mediaType string, document any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return push(t, to, mediaType, data)
}

func tag(t *testing.T, to oras.Target, desc ocispec.Descriptor, name string) {
	t.Helper()
	if err := to.Tag(t.Context(), desc, name); err != nil {
		t.Fatal(err)
	}
}

func fetch(t *testing.T, from content.Fetcher, desc ocispec.Descriptor) []byte {
	t.Helper()
	data, err := content.FetchAll(t.Context(), from, desc)
	if err != nil {
		t.Fatalf("%s: %v", desc.Digest, err)
	}
	return data
}

func fetchJSON[T any](t *testing.T, from content.Fetcher, desc ocispec.Descriptor) T {
	t.Helper()
	var document T
	if err := json.Unmarshal(fetch(t, from, desc), &document); err != nil {
		t.Fatal(err)
	}
	return document
}

// oracle decrypts with ocicrypt.
func oracle(t *testing.T, dc *config.DecryptConfig, from content.Fetcher, desc ocispec.Descriptor) []byte {
	t.Helper()
	registerOnce()
	plain, _, err := ocicrypt.DecryptLayer(dc, bytes.NewReader(fetch(t, from, desc)), desc, false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// registerOnce makes the oracle unwrap packets of testKEK.
var registerOnce = sync.OnceFunc(func() { //nolint:gochecknoglobals // ocicrypt's table is global
	ocicrypt.RegisterKeyWrapper(keywrap.Scheme, kekWrapper{})
})

func testKEK() []byte { return bytes.Repeat([]byte{7}, keywrap.KEKSize) }

// kekWrapper wraps with testKEK, under the kid in its parameters.
type kekWrapper struct{}

func (kekWrapper) GetAnnotationID() string                       { return keywrap.AnnotationKey }
func (kekWrapper) NoPossibleKeys(map[string][][]byte) bool       { return false }
func (kekWrapper) GetPrivateKeys(map[string][][]byte) [][]byte   { return nil }
func (kekWrapper) GetKeyIdsFromPacket(string) ([]uint64, error)  { return nil, nil }
func (kekWrapper) GetRecipients(packet string) ([]string, error) { return nil, nil }

func (kekWrapper) WrapKeys(ec *config.EncryptConfig, opts []byte) ([]byte, error) {
	names := ec.Parameters[keywrap.ProviderName]
	if len(names) == 0 {
		return nil, nil
	}
	packet, err := keywrap.Wrap(testKEK(), string(names[0]), opts, nil)
	if err != nil {
		return nil, err
	}
	return packet.Marshal()
}

func (kekWrapper) UnwrapKey(_ *config.DecryptConfig, data []byte) ([]byte, error) {
	packet, err := keywrap.ParsePacket(data)
	if err != nil {
		return nil, err
	}
	return keywrap.Unwrap(testKEK(), packet)
}

func kbsRecipient(kid string) publish.Recipient {
	return publish.NewRecipient(kekWrapper{}, map[string][][]byte{keywrap.ProviderName: {[]byte(kid)}})
}

// keys are somebody's key pair, in the forms that ocicrypt reads.
type keys struct {
	private, public, certificate []byte
}

func (k keys) decrypt() *config.DecryptConfig {
	parameters := map[string][][]byte{"privkeys": {k.private}, "privkeys-passwords": {nil}}
	if k.certificate != nil {
		parameters["x509s"] = [][]byte{k.certificate}
	}
	return &config.DecryptConfig{Parameters: parameters}
}

func rsaKeys(t testing.TB) keys {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xc0ffe5), Subject: pkix.Name{CommonName: "somebody"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k := encodeKeys(t, key, key.Public())
	k.certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	return k
}

func ecKeys(t testing.TB) keys {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return encodeKeys(t, key, key.Public())
}

func encodeKeys(t testing.TB, private, public any) keys {
	t.Helper()
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return keys{
		private: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}),
		public:  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}),
	}
}

func jweRecipient(t testing.TB, public ...[]byte) publish.Recipient {
	t.Helper()
	r, err := publish.JWE(public...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func digestOf(s string) digest.Digest { return digest.FromString(s) }

func encrypt(ctx context.Context, t *testing.T, src, dst string, opts publish.Options) (publish.Result, error) {
	t.Helper()
	if opts.TempDir == "" {
		opts.TempDir = t.TempDir()
	}
	return publish.Encrypt(ctx, parse(t, src), parse(t, dst), opts)
}
