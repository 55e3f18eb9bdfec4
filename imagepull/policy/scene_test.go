// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

// repo is a repository's content, with what may go wrong.
type repo struct {
	tags      map[string]digest.Digest
	manifests map[digest.Digest][]byte
	blobs     map[digest.Digest][]byte
	referrers map[digest.Digest][]ocispec.Descriptor
	away      map[string]error // by method
	asked     int
	refs      map[string]bool // every reference that was asked with
}

func newRepo() *repo {
	return &repo{
		tags: map[string]digest.Digest{}, manifests: map[digest.Digest][]byte{}, blobs: map[digest.Digest][]byte{},
		referrers: map[digest.Digest][]ocispec.Descriptor{}, away: map[string]error{}, refs: map[string]bool{},
	}
}

func (r *repo) ask(ref, method string) error {
	r.asked++
	r.refs[ref] = true
	return r.away[method]
}

func (r *repo) Manifest(_ context.Context, ref string, d digest.Digest) ([]byte, string, error) {
	if err := r.ask(ref, "Manifest"); err != nil {
		return nil, "", err
	}
	b, ok := r.manifests[d]
	if !ok {
		return nil, "", fmt.Errorf("manifest %s: %w", d, errdefs.ErrNotFound)
	}
	return b, ocispec.MediaTypeImageManifest, nil
}

func (r *repo) Tag(_ context.Context, ref, tag string) ([]byte, string, digest.Digest, error) {
	if err := r.ask(ref, "Tag"); err != nil {
		return nil, "", "", err
	}
	d, ok := r.tags[tag]
	if !ok {
		return nil, "", "", fmt.Errorf("tag %s: %w", tag, errdefs.ErrNotFound)
	}
	return r.manifests[d], ocispec.MediaTypeImageManifest, d, nil
}

func (r *repo) Referrers(_ context.Context, ref string, subject digest.Digest, _ string) ([]ocispec.Descriptor, error) {
	return r.referrers[subject], r.ask(ref, "Referrers")
}

func (r *repo) Blob(_ context.Context, ref string, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := r.ask(ref, "Blob"); err != nil {
		return nil, err
	}
	b, ok := r.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("blob %s: too long: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

func (r *repo) addManifest(m any) digest.Digest {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) //nolint:forbidigo // maps of a test
	}
	d := digest.FromBytes(b)
	r.manifests[d] = b
	return d
}

func (r *repo) addBlob(b []byte, mediaType string, annotations map[string]string) ocispec.Descriptor {
	d := digest.FromBytes(b)
	r.blobs[d] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b)), Annotations: annotations}
}

const (
	typePayload = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeBundle  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeCosign  = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// addTag attaches signatures as cosign does first.
func (r *repo) addTag(subject digest.Digest, layers ...ocispec.Descriptor) {
	r.tags["sha256-"+subject.Encoded()+".sig"] = r.addManifest(map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "layers": layers,
	})
}

// addReferrer attaches signatures as a manifest that refers to the image.
func (r *repo) addReferrer(subject digest.Digest, artifactType string, annotations map[string]string, layers ...ocispec.Descriptor) {
	d := r.addManifest(map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "artifactType": artifactType, "layers": layers,
		"subject": map[string]any{"digest": subject},
	})
	r.referrers[subject] = append(r.referrers[subject], ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Digest: d, Annotations: annotations,
	})
}

// scene is an image in a repository, and everybody who may sign it.
type scene struct {
	*testing.T
	*repo
	image    policy.Image
	key, eve *ecdsa.PrivateKey
	sigstore *sigstoretest.Instance
	at       time.Time
}

const imageName = "registry.example/team/app:1.0"

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{
		T: t, repo: newRepo(), key: sigstoretest.NewKey(t), eve: sigstoretest.NewKey(t),
		sigstore: sigstoretest.New(t), at: time.Now().Add(-24 * time.Hour),
	}
	manifest := s.addManifest(map[string]any{"schemaVersion": 2, "config": map[string]any{}})
	index := s.addManifest(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{"digest": manifest}}})
	s.image = policy.Image{Name: imageName, Manifest: manifest, Index: index}
	return s
}

// payload is what cosign signs (kind "cosign container image signature"), or
// simple signing.
func payload(kind, ref string, d digest.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":{"creator":"test","timestamp":1700000000}}`, ref, d, kind)
}

func cosignPayload(ref string, d digest.Digest) []byte {
	return payload("cosign container image signature", ref, d)
}

// cosigned is a signature with a key, as a layer.
func (s *scene) cosigned(key *ecdsa.PrivateKey, payload []byte) ocispec.Descriptor {
	s.Helper()
	signed := s.sigstore.SignMessage(payload, nil, key, s.at)
	return s.addBlob(payload, typePayload, s.sigstore.Annotations(signed, false))
}

// bundle is a layer with a bundle.
func (s *scene) bundle(signed *sigstoretest.Signed, p sigstoretest.Parts) ocispec.Descriptor {
	s.Helper()
	return s.addBlob(s.sigstore.Bundle(signed, p), typeBundle, nil)
}

func (s *scene) verify(doc string, opts policy.Options) error {
	s.Helper()
	p, err := policy.Parse([]byte(doc))
	if err != nil {
		s.Fatal(err)
	}
	return policy.NewVerifier(p, s.repo, nil, opts).Verify(s.Context(), s.image)
}

// requires is a policy of one requirement for everything.
func requires(requirement string) string { return `{"default":[` + requirement + `]}` }

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// bySigstore is a requirement with more members.
func bySigstore(members string) string { return requires(`{"type":"sigstoreSigned",` + members + `}`) }

func (s *scene) byKey(more string) string {
	s.Helper()
	return bySigstore(`"keyData":"` + b64(sigstoretest.PublicPEM(s, s.key)) + `"` + more)
}

// want checks that err has the class and all parts of the text; class nil is
// no error.
func want(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	switch {
	case class == nil && err != nil:
		t.Errorf("refused: %v", err)
	case class == nil:
	case err == nil:
		t.Error("allowed")
	case errdefs.Resolve(err) != class: //nolint:errorlint // the class itself
		t.Errorf("class %v, want %v: %v", errdefs.Resolve(err), class, err)
	default:
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %q lacks %q", err, part)
			}
		}
	}
}

// gpgKey makes an OpenPGP key.
func gpgKey(t *testing.T, config *packet.Config) *openpgp.Entity {
	t.Helper()
	if config == nil {
		config = &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}
	}
	e, err := openpgp.NewEntity("Test", "", "test@example.test", config)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func publicKey(t *testing.T, e *openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// gpgSigned is what gpg --sign makes.
func gpgSigned(t *testing.T, e *openpgp.Entity, content []byte, config *packet.Config) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := openpgp.Sign(&b, e, nil, config)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
