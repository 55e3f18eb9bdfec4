// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

const anyIdentity = `,"signedIdentity":{"type":"anyIdentity"}`

// errDenied and errAway are the classes of most refusals.
var (
	errDenied = errdefs.ErrPermissionDenied
	errAway   = errdefs.ErrUnavailable
)

func TestCosignKeys(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sign  func(*scene)
		more  string // members of the requirement
		class error
		parts []string
	}{
		"index signed": {sign: func(s *scene) { s.addTag(s.image.Index, s.cosigned(s.key, cosignPayload(imageName, s.image.Index))) }},
		"manifest signed": {sign: func(s *scene) {
			s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
		}},
		"second of three is good": {sign: func(s *scene) {
			p := cosignPayload(imageName, s.image.Manifest)
			s.addTag(s.image.Manifest, s.cosigned(s.eve, p), s.cosigned(s.key, p), s.cosigned(s.eve, cosignPayload("evil.example/x:1", s.image.Manifest)))
		}},
		"as a referrer": {sign: func(s *scene) {
			s.addReferrer(s.image.Index, typeCosign, nil, s.cosigned(s.key, cosignPayload(imageName, s.image.Index)))
		}},
		"index of none": {sign: func(s *scene) {
			s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
			s.image.Index = ""
		}},
		"no signature": {sign: func(*scene) {}, class: errDenied, parts: []string{
			"image policy: default requires sigstoreSigned: the image has no sigstore signature: sign it with cosign",
		}},
		"another key": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.eve, cosignPayload(imageName, s.image.Manifest)))
			},
			class: errDenied, parts: []string{"not signed by a trusted key"},
		},
		"another digest": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, digest.FromString("other"))))
			},
			class: errDenied, parts: []string{"it is for sha256:"},
		},
		"another name": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload("registry.example/team/other:1.0", s.image.Manifest)))
			},
			class: errDenied, parts: []string{`it is for "registry.example/team/other:1.0", which matchRepoDigestOrExact does not accept`},
		},
		"repository alone": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload("registry.example/team/app", s.image.Manifest)))
			},
			class: errDenied, parts: []string{"matchRepoDigestOrExact"},
		},
		"repository, as the policy says": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload("registry.example/team/app", s.image.Manifest)))
			},
			more: `,"signedIdentity":{"type":"matchRepository"}`,
		},
		"any name": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload("other.example/x", s.image.Manifest)))
			},
			more: anyIdentity,
		},
		"any name, another digest": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload("other.example/x", digest.FromString("x"))))
			},
			more: anyIdentity, class: errDenied, parts: []string{"it is for sha256:"},
		},
		"payload of simple signing": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, payload("atomic container signature", imageName, s.image.Manifest)))
			},
			class: errDenied, parts: []string{`payload.critical.type: "atomic container signature" instead of`},
		},
		"payload with a second digest": {
			sign: func(s *scene) {
				p := strings.Replace(string(cosignPayload(imageName, s.image.Manifest)), `"type"`, `"image":{"docker-manifest-digest":"sha256:00"},"type"`, 1)
				s.addTag(s.image.Manifest, s.cosigned(s.key, []byte(p)))
			},
			class: errDenied, parts: []string{"payload.critical.image: given twice"},
		},
		"payload changed": {
			sign: func(s *scene) {
				d := s.cosigned(s.key, cosignPayload("other.example/x:1", s.image.Manifest))
				s.addTag(s.image.Manifest, s.addBlob(cosignPayload(imageName, s.image.Manifest), typePayload, d.Annotations))
			},
			class: errDenied, parts: []string{"not signed by a trusted key"},
		},
		"blob is not what the manifest says": {
			sign: func(s *scene) {
				d := s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest))
				s.blobs[d.Digest] = append(s.blobs[d.Digest], ' ')
				s.addTag(s.image.Manifest, d)
			},
			class: errDenied, parts: []string{"its bytes are not those of"},
		},
		"blob is gone": {
			sign: func(s *scene) {
				d := s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest))
				delete(s.blobs, d.Digest)
				s.addTag(s.image.Manifest, d)
			},
			class: errDenied, parts: []string{"no signature is accepted"},
		},
		"payload too long": {
			sign:  func(s *scene) { s.addTag(s.image.Manifest, s.addBlob(make([]byte, 65<<10), typePayload, nil)) },
			class: errDenied, parts: []string{"66560 bytes, more than 65536"},
		},
		"without the annotation": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.addBlob(cosignPayload(imageName, s.image.Manifest), typePayload, nil))
			},
			class: errDenied, parts: []string{"is not the base64 of a signature"},
		},
		"not a manifest": {
			sign: func(s *scene) {
				s.manifests["sha256:x"] = []byte("no")
				s.tags["sha256-"+s.image.Manifest.Encoded()+".sig"] = "sha256:x"
			},
			class: errDenied, parts: []string{"not a manifest of signatures"},
		},
		"signature 100 of 128": {sign: func(s *scene) {
			layers := s.many(127)
			layers[99] = s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest))
			s.addTag(s.image.Manifest, layers...)
		}},
		"a thousand signatures": {
			sign:  func(s *scene) { s.addTag(s.image.Manifest, s.many(1000)...) },
			class: errDenied, parts: []string{"signature 1: not signed by a trusted key", "and 126 more"},
		},
		"thousands of referrers": {
			sign: func(s *scene) {
				for _, d := range s.many(500) {
					s.addReferrer(s.image.Manifest, typeCosign, nil, d)
				}
			},
			class: errDenied, parts: []string{"not signed by a trusted key"},
		},
		"tags cannot be read": {
			sign:  func(s *scene) { s.away["Tag"] = fmt.Errorf("registry: 503: %w", errdefs.ErrUnavailable) },
			class: errAway, parts: []string{"signatures cannot be read: registry: 503", "try again"},
		},
		"referrers cannot be read, tag is good": {sign: func(s *scene) {
			s.away["Referrers"] = fmt.Errorf("registry: 503: %w", errdefs.ErrUnavailable)
			s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
		}},
		"tags cannot be read, referrer is good": {sign: func(s *scene) {
			s.away["Tag"] = fmt.Errorf("registry: 503: %w", errdefs.ErrUnavailable)
			s.addReferrer(s.image.Index, typeCosign, nil, s.cosigned(s.key, cosignPayload(imageName, s.image.Index)))
		}},
		"registry knows no referrers": {
			sign:  func(s *scene) { s.away["Referrers"] = fmt.Errorf("registry: 404: %w", errdefs.ErrNotFound) },
			class: errDenied, parts: []string{"no sigstore signature"},
		},
		"bad signature, and the rest cannot be read": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.eve, cosignPayload(imageName, s.image.Manifest)))
				s.away["Referrers"] = fmt.Errorf("registry: 503: %w", errdefs.ErrUnavailable)
			},
			class: errAway, parts: []string{"not signed by a trusted key", "others cannot be read"},
		},
		"registry refuses": {
			sign:  func(s *scene) { s.away["Tag"] = fmt.Errorf("registry: 401: %w", errdefs.ErrUnauthenticated) },
			class: errDenied, parts: []string{"registry: 401"},
		},
		"log required, promise there": {
			sign: func(s *scene) {
				p := cosignPayload(imageName, s.image.Manifest)
				s.addTag(s.image.Manifest, s.addBlob(p, typePayload, s.sigstore.Annotations(s.sigstore.SignMessage(p, nil, s.key, s.at), true)))
			},
			more: `,"rekorPublicKeyData":"REKOR"`,
		},
		"log required, none": {
			sign: func(s *scene) {
				s.addTag(s.image.Manifest, s.cosigned(s.key, cosignPayload(imageName, s.image.Manifest)))
			},
			more: `,"rekorPublicKeyData":"REKOR"`, class: errDenied, parts: []string{"without an entry of a transparency log"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			c.sign(s)
			more := strings.Replace(c.more, "REKOR", b64(s.sigstore.RekorPEM()), 1)
			want(t, s.verify(s.byKey(more), policy.Options{}), c.class, c.parts...)
			if s.asked > 300 {
				t.Errorf("%d requests", s.asked)
			}
			for ref := range s.refs {
				if ref != imageName {
					t.Errorf("asked with %q", ref)
				}
			}
		})
	}
}

// many are signatures by eve, each another.
func (s *scene) many(n int) []ocispec.Descriptor {
	s.Helper()
	out := make([]ocispec.Descriptor, n)
	for i := range out {
		out[i] = s.cosigned(s.eve, cosignPayload(fmt.Sprintf("registry.example/team/app:%d", i), s.image.Manifest))
	}
	return out
}

func TestBundles(t *testing.T) {
	t.Parallel()
	proof := sigstoretest.Parts{Proof: true}
	sign := sigstore.PredicateCosignSign
	for name, c := range map[string]struct {
		sign  func(*scene)
		more  string
		class error
		parts []string
	}{
		"statement": {more: anyIdentity, sign: func(s *scene) {
			s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
		}},
		"registry shows another artifact type": {more: anyIdentity, sign: func(s *scene) {
			s.addReferrer(s.image.Index, ocispec.MediaTypeEmptyJSON, map[string]string{"dev.sigstore.bundle.predicateType": sign},
				s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
		}},
		"statement with a name": {sign: func(s *scene) {
			s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, imageName, s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
		}},
		"statement without a name": {
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"it names no image", `set signedIdentity to {"type":"anyIdentity"}`},
		},
		"statement on another image": {more: anyIdentity,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", digest.FromString("x").Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"it is for another image"},
		},
		"statement by another": {more: anyIdentity,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.eve, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"not signed by a trusted key"},
		},
		"provenance is no signature": {more: anyIdentity,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement("https://slsa.dev/provenance/v1", "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{`an attestation of type "https://slsa.dev/provenance/v1", not a signature`},
		},
		"attestations are not even read": {more: anyIdentity,
			sign: func(s *scene) {
				for i := range 1000 {
					s.addReferrer(s.image.Index, typeBundle, map[string]string{"dev.sigstore.bundle.predicateType": fmt.Sprintf("https://scan.test/%d", i)})
				}
				s.addReferrer(s.image.Index, "application/spdx+json", nil)
			},
			class: errDenied, parts: []string{"an attestation of type"},
		},
		"manifest's own bytes": {more: anyIdentity, sign: func(s *scene) {
			s.addReferrer(s.image.Manifest, typeBundle, nil, s.bundle(s.sigstore.SignMessage(s.manifests[s.image.Manifest], nil, s.key, s.at), sigstoretest.Parts{}))
		}},
		"manifest's own bytes, as an empty index": {
			more: anyIdentity,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignMessage(s.manifests[s.image.Manifest], nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"it is for another image"},
		},
		"digest lies about what is signed": {more: anyIdentity,
			sign: func(s *scene) {
				signed := s.sigstore.SignMessage([]byte("other"), nil, s.key, s.at)
				signed.Message = s.manifests[s.image.Manifest]
				s.addReferrer(s.image.Manifest, typeBundle, nil, s.bundle(signed, sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"not signed by a trusted key"},
		},
		"log required, proof there": {more: anyIdentity + `,"rekorPublicKeyData":"REKOR"`, sign: func(s *scene) {
			s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), proof))
		}},
		"log required, none": {more: anyIdentity + `,"rekorPublicKeyData":"REKOR"`,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied, parts: []string{"without an entry"},
		},
		"too long": {more: anyIdentity,
			sign: func(s *scene) {
				s.addReferrer(s.image.Index, typeBundle, nil, s.addBlob(make([]byte, 129<<10), typeBundle, nil))
			},
			class: errDenied, parts: []string{"more than 131072"},
		},
		"eight megabytes in all": {more: anyIdentity,
			sign: func(s *scene) {
				for i := range 100 {
					s.addReferrer(s.image.Index, typeBundle, nil, s.addBlob(append(make([]byte, 127<<10), byte(i)), typeBundle, nil))
				}
				s.addReferrer(s.image.Index, typeBundle, nil, s.bundle(s.sigstore.SignStatement(sign, "", s.image.Index.Encoded(), nil, s.key, s.at), sigstoretest.Parts{}))
			},
			class: errDenied,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			c.sign(s)
			more := strings.Replace(c.more, "REKOR", b64(s.sigstore.RekorPEM()), 1)
			want(t, s.verify(s.byKey(more), policy.Options{}), c.class, c.parts...)
		})
	}
}

// TestKeyless is about which identity and whose authority; package sigstore
// tests the rest.
func TestKeyless(t *testing.T) {
	t.Parallel()
	const issuer, uri = "https://issuer.test", "https://git.test/org/repo/.w/release.yml@refs/tags/v1"
	own := `"rekorPublicKeyData":"REKOR","fulcio":{"caData":"CA","oidcIssuer":"https://issuer.test",`
	root := `"fulcio":{"trustedRootData":"ROOT","oidcIssuer":"https://issuer.test",`
	for name, c := range map[string]struct {
		members string
		id      sigstoretest.Identity
		class   error
		parts   []string
	}{
		"own authority":                   {members: own + `"subjectEmail":"dev@example.test"}`},
		"own authority, no SCT":           {members: own + `"subjectEmail":"dev@example.test"}`, id: sigstoretest.Identity{NoSCT: true}},
		"trusted root":                    {members: root + `"subjectEmail":"dev@example.test"}`},
		"trusted root, no SCT":            {members: root + `"subjectEmail":"dev@example.test"}`, id: sigstoretest.Identity{NoSCT: true}, class: errDenied, parts: []string{"no promise of a certificate log"}},
		"trusted root, own log":           {members: `"rekorPublicKeyData":"REKOR",` + root + `"subjectEmail":"dev@example.test"}`},
		"trusted root, another's log":     {members: `"rekorPublicKeyData":"OTHER",` + root + `"subjectEmail":"dev@example.test"}`, class: errDenied, parts: []string{"not of a trusted transparency log"}},
		"workflow":                        {members: root + `"subjectURI":"` + uri + `"}`, id: sigstoretest.Identity{URI: uri}},
		"workflow by prefix":              {members: root + `"subjectURIPrefix":"https://git.test/org/repo/"}`, id: sigstoretest.Identity{URI: uri}},
		"another workflow":                {members: root + `"subjectURI":"` + uri + `2"}`, id: sigstoretest.Identity{URI: uri}, class: errDenied, parts: []string{"signed by"}},
		"another person":                  {members: root + `"subjectEmail":"eve@example.test"}`, class: errDenied, parts: []string{`not by "eve@example.test"`}},
		"another issuer":                  {members: root + `"subjectEmail":"dev@example.test"}`, id: sigstoretest.Identity{Issuer: "https://other.test"}, class: errDenied, parts: []string{"OpenID issuer"}},
		"public root knows nothing of it": {members: `"fulcio":{"trustedRoot":"public-good","oidcIssuer":"https://issuer.test","subjectEmail":"dev@example.test"}`, class: errDenied, parts: []string{"transparency log that is not trusted"}},
		"pki":                             {members: `"pki":{"caRootsData":"CA","subjectEmail":"dev@example.test"}`, id: sigstoretest.Identity{From: time.Now().Add(-time.Minute)}},
		"pki, expired":                    {members: `"pki":{"caRootsData":"CA","subjectEmail":"dev@example.test"}`, class: errDenied, parts: []string{"expired"}},
		"pki, another person":             {members: `"pki":{"caRootsData":"CA","subjectEmail":"eve@example.test"}`, id: sigstoretest.Identity{From: time.Now().Add(-time.Minute)}, class: errDenied, parts: []string{"is for"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			id := c.id
			if id.Issuer == "" {
				id.Issuer = issuer
			}
			if id.URI == "" {
				id.Email = "dev@example.test"
			}
			if id.From.IsZero() {
				id.From = s.at
			}
			cert, key := s.sigstore.Certificate(id)
			p := cosignPayload(imageName, s.image.Manifest)
			s.addTag(s.image.Manifest, s.addBlob(p, typePayload, s.sigstore.Annotations(s.sigstore.SignMessage(p, cert, key, id.From.Add(time.Second)), true)))
			members := strings.NewReplacer("REKOR", b64(s.sigstore.RekorPEM()), "OTHER", b64(sigstoretest.New(t).RekorPEM()),
				"CA\"", b64(sigstoretest.CertPEM(s.sigstore.Root))+`"`, "ROOT", b64(s.sigstore.TrustedRoot())).Replace(c.members)
			want(t, s.verify(bySigstore(members), policy.Options{}), c.class, c.parts...)
		})
	}
}

// TestRecorded verifies what cosign 3.0.6 signed and pushed.
func TestRecorded(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/cosign-v3.0.6.json")
	if err != nil {
		t.Fatal(err)
	}
	var records map[string]struct {
		Image           string
		Index, Manifest digest.Digest
		Key             string
		Tags            map[string]digest.Digest
		Manifests       map[digest.Digest]struct{ Body []byte }
		Blobs           map[digest.Digest][]byte
		Referrers       map[digest.Digest][]ocispec.Descriptor
	}
	if err := json.Unmarshal(b, &records); err != nil || len(records) != 9 {
		t.Fatal(len(records), err)
	}
	for name, rec := range records {
		s := newScene(t)
		s.repo = newRepo()
		s.tags, s.blobs, s.referrers = rec.Tags, rec.Blobs, rec.Referrers
		for d, m := range rec.Manifests {
			s.manifests[d] = m.Body
		}
		kind, key, _ := strings.Cut(name, "/")
		s.image = policy.Image{Name: "registry.example/legacy/" + key + ":1.0", Manifest: rec.Manifest, Index: rec.Index}
		doc, more := bySigstore(`"keyData":"`+b64([]byte(rec.Key))+`"`), ""
		if kind == "bundle" {
			more = anyIdentity
		}
		good := bySigstore(`"keyData":"` + b64([]byte(rec.Key)) + `"` + more)
		if err := s.verify(good, policy.Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if kind == "bundle" {
			want(t, s.verify(doc, policy.Options{}), errDenied, "names no image")
		} else {
			s.image.Name = "registry.example/legacy/" + key + ":2.0"
			want(t, s.verify(doc, policy.Options{}), errDenied, "matchRepoDigestOrExact")
		}
		want(t, s.verify(s.byKey(more), policy.Options{}), errDenied, "not signed by a trusted key")
	}
}

// TestCancelled: the end of the caller's context is no verdict.
func TestCancelled(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("nobody waits")
	cancel(cause)
	s.away["Tag"] = fmt.Errorf("registry: %w", cause)
	p, err := policy.Parse([]byte(s.byKey("")))
	if err != nil {
		t.Fatal(err)
	}
	err = policy.NewVerifier(p, s.repo, nil, policy.Options{}).Verify(ctx, s.image)
	want(t, err, errAway)
	if !errors.Is(err, cause) {
		t.Errorf("the cause is lost: %v", err)
	}
}
