// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/integration/testbed"
	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// published is an encrypted image in a machine's registry.
type published struct {
	*testbed.Image
	name     string
	ref      string
	key      resource.ID
	kek      []byte
	manifest ocispec.Manifest // as pushed by coffer
	raw      []byte           // the same, as bytes
	chains   []digest.Digest
}

// publish makes an image and encrypts it for a key of its own, with the
// coffer command line, which registers the key.
func (m *machine) publish(t *testing.T, name string, opts testbed.ImageOptions) *published {
	t.Helper()
	return m.publishFor(t, name, resource.ID{Repository: "default", Type: "key", Tag: name}, opts)
}

// publishFor is publish for a key that may be registered already.
func (m *machine) publishFor(t *testing.T, name string, key resource.ID, opts testbed.ImageOptions) *published {
	t.Helper()
	img, err := testbed.NewImage(opts)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := testbed.WriteLayout(img, filepath.Join(dir, "plain"), "plain"); err != nil {
		t.Fatal(err)
	}
	p := &published{Image: img, name: name, ref: m.RegistryHost + "/" + name + ":1", key: key}
	keyFile := m.Path("kek-" + key.Tag)
	args := []string{"encrypt", "oci:" + filepath.Join(dir, "plain") + ":plain", p.ref, "--quiet", "--to", key.URI().String(), "--key", keyFile}
	if _, err := os.Stat(keyFile); err != nil {
		token, err := m.AdminToken(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--kbs", m.KBSURL, "--admin-token", token)
	}
	if _, err := m.Coffer(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
	if p.kek, err = os.ReadFile(keyFile); err != nil {
		t.Fatal(err)
	}
	p.raw = fetchManifest(t, p.ref)
	if err := json.Unmarshal(p.raw, &p.manifest); err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range config.RootFS.DiffIDs {
		p.chains = append(p.chains, digest.Digest(d.String()))
	}
	p.chains = identity.ChainIDs(p.chains)
	return p
}

// setKey registers bytes as the image's key, whatever was there; nil takes
// the key away.
func (m *machine) setKey(t *testing.T, p *published, kek []byte) {
	t.Helper()
	admin, err := m.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close() //nolint:errcheck // idle connections only
	if kek == nil {
		err = admin.DeleteResource(t.Context(), p.key)
	} else {
		err = admin.PutResource(t.Context(), p.key, kek, kbs.PutOptions{Overwrite: true})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// top is the descriptor of the image's top layer.
func (p *published) top() ocispec.Descriptor { return p.manifest.Layers[len(p.manifest.Layers)-1] }

// pushChanged pushes the image again under its name, as one who has the
// registry can: with another blob as top layer and a manifest that fits it.
func (p *published) pushChanged(t *testing.T, change func([]byte) []byte) {
	t.Helper()
	blob := change(fetchBlob(t, p.ref, p.top().Digest))
	manifest := p.manifest
	manifest.Layers = append([]ocispec.Descriptor(nil), manifest.Layers...)
	top := &manifest.Layers[len(manifest.Layers)-1]
	top.Digest, top.Size = pushBlob(t, p.ref, blob, top.MediaType), int64(len(blob))
	pushManifest(t, p.ref, marshal(t, manifest))
}

// pushOtherDiffID pushes the image again with a configuration that names
// another diff id for the top layer.
func (p *published) pushOtherDiffID(t *testing.T) {
	t.Helper()
	var config ocispec.Image
	if err := json.Unmarshal(fetchBlob(t, p.ref, p.manifest.Config.Digest), &config); err != nil {
		t.Fatal(err)
	}
	ids := config.RootFS.DiffIDs
	ids[len(ids)-1] = digest.FromString("another layer")
	b := marshal(t, config)
	manifest := p.manifest
	manifest.Config.Digest, manifest.Config.Size = pushBlob(t, p.ref, b, manifest.Config.MediaType), int64(len(b))
	pushManifest(t, p.ref, marshal(t, manifest))
}

// pushOriginal pushes the manifest that coffer had pushed.
func (p *published) pushOriginal(t *testing.T) {
	t.Helper()
	pushManifest(t, p.ref, p.raw)
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func reference(t *testing.T, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fetchManifest(t *testing.T, ref string) []byte {
	t.Helper()
	d, err := remote.Get(reference(t, ref), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return d.Manifest
}

func fetchBlob(t *testing.T, ref string, d digest.Digest) []byte {
	t.Helper()
	layer, err := remote.Layer(reference(t, ref).Context().Digest(d.String()), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pushBlob(t *testing.T, ref string, blob []byte, mediaType string) digest.Digest {
	t.Helper()
	layer := static.NewLayer(blob, types.MediaType(mediaType))
	if err := remote.WriteLayer(reference(t, ref).Context(), layer, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return digest.FromBytes(blob)
}

// rawManifest is a manifest that is pushed as it is.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error) { return bytes.Clone(m), nil }

func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func pushManifest(t *testing.T, ref string, manifest []byte) {
	t.Helper()
	if err := remote.Put(reference(t, ref), rawManifest(manifest), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}
