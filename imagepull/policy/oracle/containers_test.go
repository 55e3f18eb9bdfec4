// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

//go:build containers_image_openpgp

package oracle

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

// source reads a registry for policy.
type source struct{ base string }

func (s source) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errdefs.ErrNotFound
	}
	return io.ReadAll(resp.Body)
}

func (s source) Manifest(ctx context.Context, _ string, d digest.Digest) ([]byte, string, error) {
	b, err := s.get(ctx, "/manifests/"+d.String())
	return b, "", err
}

func (s source) Tag(ctx context.Context, _, tag string) ([]byte, string, digest.Digest, error) {
	b, err := s.get(ctx, "/manifests/"+tag)
	return b, "", digest.FromBytes(b), err
}

func (s source) Referrers(context.Context, string, digest.Digest, string) ([]ocispec.Descriptor, error) {
	return nil, nil
}

func (s source) Blob(ctx context.Context, _ string, d ocispec.Descriptor, _ int64) ([]byte, error) {
	return s.get(ctx, "/blobs/"+d.Digest.String())
}

// stage is a registry with one image, a store of signatures, and the people.
type stage struct {
	*testing.T
	source
	host, store string
	sys         *types.SystemContext
	lookaside   *policy.Lookaside
	gpg, gpgEve *openpgp.Entity
	key, eve    *ecdsa.PrivateKey
	sigstore    *sigstoretest.Instance
}

func newStage(t *testing.T) *stage {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	s := &stage{T: t, host: strings.TrimPrefix(server.URL, "http://"), store: t.TempDir(), sigstore: sigstoretest.New(t)}
	s.key, s.eve = sigstoretest.NewKey(t), sigstoretest.NewKey(t)
	for _, e := range []**openpgp.Entity{&s.gpg, &s.gpgEve} {
		var err error
		if *e, err = openpgp.NewEntity("a", "", "a@b.test", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}); err != nil {
			t.Fatal(err)
		}
	}
	conf := t.TempDir()
	yaml := "default-docker:\n  lookaside: file://" + s.store + "\n  use-sigstore-attachments: true\n"
	for name, content := range map[string]string{"d/default.yaml": yaml, "registries.conf": ""} {
		_ = os.MkdirAll(filepath.Join(conf, "d"), 0o700)
		if err := os.WriteFile(filepath.Join(conf, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.sys = &types.SystemContext{
		RegistriesDirPath: filepath.Join(conf, "d"), SystemRegistriesConfPath: filepath.Join(conf, "registries.conf"),
		DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, SystemRegistriesConfDirPath: filepath.Join(conf, "none"),
	}
	var err error
	if s.lookaside, err = policy.ParseLookaside([]byte(yaml)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) put(method, path, contentType string, body []byte) {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), method, s.base+path, bytes.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(resp.Body)
		s.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
	}
}

func (s *stage) blob(b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	s.put(http.MethodPost, "/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	return ocispec.Descriptor{Digest: d, Size: int64(len(b))}
}

func (s *stage) manifest(tag string, m map[string]any) digest.Digest {
	s.Helper()
	m["schemaVersion"], m["mediaType"] = 2, ocispec.MediaTypeImageManifest
	b, err := json.Marshal(m)
	if err != nil {
		s.Fatal(err)
	}
	s.put(http.MethodPut, "/manifests/"+tag, ocispec.MediaTypeImageManifest, b)
	return digest.FromBytes(b)
}

// push makes an image in a repository of its own.
func (s *stage) push(n int) (name string, d digest.Digest) {
	s.Helper()
	repo := fmt.Sprintf("team/app%d", n)
	s.base = "http://" + s.host + "/v2/" + repo
	config := s.blob([]byte(fmt.Sprintf(`{"architecture":"amd64","os":"linux","n":%d,"rootfs":{"type":"layers","diff_ids":[]}}`, n)))
	config.MediaType = ocispec.MediaTypeImageConfig
	return s.host + "/" + repo + ":1.0", s.manifest("1.0", map[string]any{"config": config, "layers": []any{}})
}

// attach pushes cosign's signatures.
func (s *stage) attach(d digest.Digest, layers ...ocispec.Descriptor) {
	s.Helper()
	config := s.blob([]byte("{}"))
	config.MediaType = ocispec.MediaTypeImageConfig
	s.manifest("sha256-"+d.Encoded()+".sig", map[string]any{"config": config, "layers": layers})
}

func (s *stage) lay(repo string, d digest.Digest, content []byte, by *openpgp.Entity) {
	s.Helper()
	var b bytes.Buffer
	w, err := openpgp.Sign(&b, by, nil, nil)
	if err == nil {
		_, _ = w.Write(content)
		err = w.Close()
	}
	dir := filepath.Join(s.store, repo+"@sha256="+d.Encoded())
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "signature-1"), b.Bytes(), 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// theirs asks containers/image.
func (s *stage) theirs(name, doc string) error {
	s.Helper()
	p, err := signature.NewPolicyFromBytes([]byte(doc))
	if err != nil {
		return err
	}
	ref, err := docker.ParseReference("//" + name)
	if err != nil {
		s.Fatal(err)
	}
	src, err := ref.NewImageSource(s.Context(), s.sys)
	if err != nil {
		s.Fatal(err)
	}
	defer src.Close()
	pc, err := signature.NewPolicyContext(p)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = pc.Destroy() }()
	allowed, err := pc.IsRunningImageAllowed(s.Context(), image.UnparsedInstance(src, nil))
	if allowed != (err == nil) {
		s.Fatal(allowed, err)
	}
	return err
}

// ours asks package policy.
func (s *stage) ours(name, doc string, d digest.Digest) error {
	p, err := policy.Parse([]byte(doc))
	if err != nil {
		return err
	}
	v := policy.NewVerifier(p, s.source, nil, policy.Options{Lookaside: s.lookaside})
	return v.Verify(s.Context(), policy.Image{Name: name, Manifest: d})
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// payloads are what may be signed, good and bad; the type is filled in.
func payloads(name string, d digest.Digest) map[string]string {
	critical := func(ref string, d any) string {
		return fmt.Sprintf(`"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"TYPE"}`, ref, d)
	}
	repo := name[:strings.LastIndex(name, ":")]
	return map[string]string{
		"exact":            `{` + critical(name, d) + `,"optional":{}}`,
		"creator":          `{` + critical(name, d) + `,"optional":{"creator":"x","timestamp":17,"more":[1,{"a":null}]}}`,
		"other tag":        `{` + critical(repo+":2", d) + `,"optional":{}}`,
		"bare":             `{` + critical(repo, d) + `,"optional":{}}`,
		"by digest":        `{` + critical(repo+"@"+d.String(), d) + `,"optional":{}}`,
		"other repository": `{` + critical("other.example/x:1", d) + `,"optional":{}}`,
		"other digest":     `{` + critical(name, digest.FromString("x")) + `,"optional":{}}`,
		"bad digest":       `{` + critical(name, "sha256:0") + `,"optional":{}}`,
		"no reference":     `{` + critical("", d) + `,"optional":{}}`,
		"no optional":      `{` + critical(name, d) + `}`,
		"null optional":    `{` + critical(name, d) + `,"optional":null}`,
		"text optional":    `{` + critical(name, d) + `,"optional":"x"}`,
		"creator number":   `{` + critical(name, d) + `,"optional":{"creator":1}}`,
		"half a second":    `{` + critical(name, d) + `,"optional":{"timestamp":1.5}}`,
		"whole seconds":    `{` + critical(name, d) + `,"optional":{"timestamp":2.0}}`,
		"text timestamp":   `{` + critical(name, d) + `,"optional":{"timestamp":"1"}}`,
		"twice optional":   `{` + critical(name, d) + `,"optional":{"a":1,"a":2}}`,
		"twice critical":   `{` + critical(name, d) + `,` + critical(name, d) + `,"optional":{}}`,
		"more":             `{` + critical(name, d) + `,"optional":{},"more":1}`,
		"more critical":    `{` + strings.Replace(critical(name, d), `"type"`, `"more":1,"type"`, 1) + `,"optional":{}}`,
		"other type":       `{` + strings.Replace(critical(name, d), "TYPE", "TYPE ", 1) + `,"optional":{}}`,
		"case":             `{` + strings.Replace(critical(name, d), "critical", "Critical", 1) + `,"optional":{}}`,
		"trailing":         `{` + critical(name, d) + `,"optional":{}} {}`,
		"not JSON":         `x`,
	}
}

// TestContainersImage: on every combination of what was signed, by whom, and
// what is required, the verdicts are the same.
func TestContainersImage(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	at := time.Now().Add(-time.Hour)
	cert, certKey := s.sigstore.Certificate(sigstoretest.Identity{Issuer: "https://i.test", Email: "dev@example.test", From: at, NoSCT: true})
	fresh, freshKey := s.sigstore.Certificate(sigstoretest.Identity{Issuer: "https://i.test", Email: "dev@example.test", From: time.Now().Add(-time.Minute), NoSCT: true})
	n, allowed, total := 0, 0, 0
	seed := payloads("a.b/c:1", digest.FromString(""))
	for what := range seed {
		for _, form := range []string{"gpg", "gpg eve", "key", "key logged", "eve", "fulcio", "fulcio unlogged", "pki"} {
			n++
			name, d := s.push(n)
			content := []byte(payloads(name, d)[what])
			if strings.HasPrefix(form, "gpg") {
				by := s.gpg
				if form == "gpg eve" {
					by = s.gpgEve
				}
				s.lay(fmt.Sprintf("team/app%d", n), d, bytes.Replace(content, []byte("TYPE"), []byte("atomic container signature"), 1), by)
			} else {
				content = bytes.Replace(content, []byte("TYPE"), []byte("cosign container image signature"), 1)
				signed := s.sigstore.SignMessage(content, nil, s.key, at.Add(time.Minute))
				switch form {
				case "eve":
					signed = s.sigstore.SignMessage(content, nil, s.eve, at)
				case "fulcio", "fulcio unlogged":
					signed = s.sigstore.SignMessage(content, cert, certKey, at.Add(time.Minute))
				case "pki":
					signed = s.sigstore.SignMessage(content, fresh, freshKey, at)
				}
				layer := s.blob(content)
				layer.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
				layer.Annotations = s.sigstore.Annotations(signed, form == "key logged" || form == "fulcio")
				s.attach(d, layer)
			}
			names := []string{name}
			if what == "exact" || what == "other tag" || what == "by digest" || what == "bare" {
				names = append(names, name[:strings.LastIndex(name, ":")]+"@"+d.String())
			}
			for _, name := range names {
				for _, doc := range s.policies(name) {
					total++
					ours, theirs := s.ours(name, doc, d), s.theirs(name, doc)
					if (ours == nil) != (theirs == nil) {
						t.Errorf("%s by %s as %s\n%s\nhere:  %v\nthere: %v", what, form, name, doc, ours, theirs)
					}
					if ours == nil {
						allowed++
					}
				}
			}
		}
	}
	t.Logf("%d verdicts, %d allowed", total, allowed)
	if allowed < 100 || allowed > total-100 {
		t.Error("the table says too little")
	}
}

func (s *stage) policies(name string) []string {
	s.Helper()
	var gpg bytes.Buffer
	if err := s.gpg.Serialize(&gpg); err != nil {
		s.Fatal(err)
	}
	key, rekor := b64(sigstoretest.PublicPEM(s, s.key)), b64(s.sigstore.RekorPEM())
	eve, ca := b64(sigstoretest.PublicPEM(s, s.eve)), b64(sigstoretest.CertPEM(s.sigstore.Root))
	repo, _, _ := strings.Cut(strings.TrimPrefix(name, s.host), "@")
	repo = s.host + strings.Split(repo, ":")[0]
	signedBy := `{"type":"signedBy","keyType":"GPGKeys","keyData":"` + b64(gpg.Bytes()) + `"}`
	byKey := `{"type":"sigstoreSigned","keyData":"` + key + `"}`
	identity := func(id string) string {
		return `{"type":"sigstoreSigned","keyDatas":["` + eve + `","` + key + `"],"signedIdentity":{` + id + `}}`
	}
	lists := []string{
		signedBy, byKey, byKey + `,` + byKey, byKey + `,{"type":"reject"}`,
		strings.Replace(signedBy, `"GPGKeys"`, `"GPGKeys","signedIdentity":{"type":"matchRepository"}`, 1),
		identity(`"type":"matchExact"`), identity(`"type":"matchRepository"`), identity(`"type":"matchRepoDigestOrExact"`),
		identity(`"type":"exactReference","dockerReference":"` + repo + `:2"`),
		identity(`"type":"exactRepository","dockerRepository":"other.example/x"`),
		identity(`"type":"remapIdentity","prefix":"` + repo + `","signedPrefix":"other.example/x"`),
		`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyData":"` + rekor + `"}`,
		`{"type":"sigstoreSigned","rekorPublicKeyDatas":["` + eve + `","` + rekor + `"],"fulcio":{"caData":"` + ca + `","oidcIssuer":"https://i.test","subjectEmail":"dev@example.test"}}`,
		`{"type":"sigstoreSigned","rekorPublicKeyData":"` + rekor + `","fulcio":{"caData":"` + ca + `","oidcIssuer":"https://other.test","subjectEmail":"dev@example.test"}}`,
		`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `","subjectEmail":"dev@example.test"}}`,
		`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `","subjectHostname":"a.test"}}`,
	}
	out := make([]string, 0, len(lists)+3)
	for _, l := range lists {
		out = append(out, `{"default":[`+l+`]}`)
	}
	// Scopes, the most particular first.
	accept, reject := `[{"type":"insecureAcceptAnything"}]`, `[{"type":"reject"}]`
	return append(out,
		`{"default":`+accept+`,"transports":{"docker":{"`+repo+`":[`+byKey+`],"`+s.host+`":`+reject+`}}}`,
		`{"default":`+reject+`,"transports":{"docker":{"`+name+`":`+accept+`,"`+repo+`":`+reject+`}}}`,
		`{"default":`+accept+`,"transports":{"docker":{"`+s.host+`/team":`+reject+`,"":`+accept+`}}}`,
	)
}

// TestParse: both read the same policies, but for what is stricter here.
func TestParse(t *testing.T) {
	t.Parallel()
	key := b64(sigstoretest.PublicPEM(t, sigstoretest.NewKey(t)))
	accept := `[{"type":"insecureAcceptAnything"}]`
	one := func(r string) string { return `{"default":[` + r + `]}` }
	for _, doc := range []string{
		`{}`, `[]`, `{"default":[]}`, `{"default":null}`, `{"default":` + accept + `}`, `{"default":` + accept + `,"more":1}`,
		`{"default":` + accept + `,"transports":{"docker":{"a.b":[]}}}`, `{"default":` + accept + `,"transports":null}`,
		`{"default":` + accept + `,"transports":{"docker":null}}`, `{"Default":` + accept + `}`,
		one(`{"type":"x"}`), one(`{"type":"reject","a":1}`), one(`{"type":"reject","type":"reject"}`), one(`{}`), one(`null`), one(`1`),
		one(`{"type":"signedBy","keyType":"GPGKeys"}`), one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}`),
		one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":""}`), one(`{"type":"signedBy","keyPath":"/k"}`),
		one(`{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/k"]}`),
		one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyPaths":["/k"]}`),
		one(`{"type":"sigstoreSigned"}`), one(`{"type":"sigstoreSigned","keyPath":"/k"}`), one(`{"type":"sigstoreSigned","keyData":"` + key + `"}`),
		one(`{"type":"sigstoreSigned","keyData":"` + key + `","keyPath":"/k"}`), one(`{"type":"sigstoreSigned","keyPaths":[]}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r","rekorPublicKeyPaths":["/r"]}`),
		one(`{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"e"}}`),
		one(`{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"e"}}`),
		one(`{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"caPath":"/c","oidcIssuer":"i"}}`),
		one(`{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"oidcIssuer":"i","subjectEmail":"e"}}`),
		one(`{"type":"sigstoreSigned","pki":{"caRootsPath":"/c"}}`), one(`{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectEmail":"e"}}`),
		one(`{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","pki":{"caRootsPath":"/c","subjectEmail":"e"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact","x":1}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"x"}}`), one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a.b/c"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a.b/c:1"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"exactRepository","dockerRepository":"a.b/c"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.b","signedPrefix":"docker.io/library"}}`),
		one(`{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.b/c:1","signedPrefix":"c.d"}}`),
	} {
		_, ours := policy.Parse([]byte(doc))
		_, theirs := signature.NewPolicyFromBytes([]byte(doc))
		if (ours == nil) != (theirs == nil) {
			t.Errorf("%s\nhere:  %v\nthere: %v", doc, ours, theirs)
		}
	}
	for _, doc := range []string{
		one(`{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}`),                    // no key at all
		one(`{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}`),          // never holds
		one(`{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}`),     // never holds
		one(`{"type":"sigstoreSigned","keyPath":"k"}`),                                  // relative to what?
		one(`{"type":"sigstoreSigned","keyData":"AAAA"}`),                               // no key
		`{"default":` + accept + `,"transports":{"docker":{"busybox":` + accept + `}}}`, // matches nothing
	} {
		_, ours := policy.Parse([]byte(doc))
		_, theirs := signature.NewPolicyFromBytes([]byte(doc))
		if ours == nil || theirs != nil {
			t.Errorf("stricter only here: %s: here %v, there %v", doc, ours, theirs)
		}
	}
}
