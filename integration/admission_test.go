// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/integration/testbed"
	"github.com/coffer-cc/coffer/kbs/resource"
)

// signer is a publisher with a key of cosign's kind.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t *testing.T) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key}
}

// public is the key as a policy has it in keyData.
func (s signer) public(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// sign pushes a signature over an image, under the tag that cosign uses.
func (s signer) sign(t *testing.T, p *published) {
	t.Helper()
	d := digest.FromBytes(p.raw)
	repository := strings.TrimSuffix(p.ref, ":1")
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, repository, d)
	hash := sha256.Sum256(payload)
	signature, err := ecdsa.SignASN1(rand.Reader, s.key, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer(payload, "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := testbed.Push(t.Context(), img, repository+":sha256-"+d.Encoded()+".sig"); err != nil {
		t.Fatal(err)
	}
}

// tamper pushes, under the name ref, the same layers with another configuration.
func tamper(t *testing.T, p *published, name, ref string) *published {
	t.Helper()
	img, err := remote.Image(reference(t, p.ref), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config := file.Config
	config.Entrypoint = []string{"/bin/busybox", "echo", "tampered"}
	if img, err = mutate.Config(img, config); err != nil {
		t.Fatal(err)
	}
	if err := testbed.Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	q := *p
	q.name, q.ref = name, ref
	q.raw = fetchManifest(t, ref)
	return &q
}

// notCreated wants no container of an image that is pulled.
func (m *machine) notCreated(t *testing.T, ref string, texts ...string) {
	t.Helper()
	_, err := m.pod.Create(t.Context(), "refused-"+digest.FromString(t.Name() + ref + strings.Join(texts, "")).Encoded()[:12], ref, "cat", "/secret")
	m.saysWhy(t, err, texts...)
}

func (m *machine) saysWhy(t *testing.T, err error, texts ...string) {
	t.Helper()
	var refused *testbed.CommandError
	if !errors.As(err, &refused) {
		t.Fatalf("%v, want a refusal", err)
	}
	t.Logf("containerd's client says: %s", refused.Output)
	for _, text := range texts {
		if !strings.Contains(refused.Output, text) {
			t.Errorf("the error does not say %q", text)
		}
	}
}

func (m *machine) pulled(t *testing.T, ref string) {
	t.Helper()
	if err := m.Pull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
}

// prints runs a container of an image that is pulled and wants its secret.
func (m *machine) prints(t *testing.T, p *published, container, ref string) {
	t.Helper()
	out, err := m.pod.Run(t.Context(), container, ref, "cat", "/secret")
	if err != nil {
		t.Fatal(err)
	}
	if want := p.Secret + "\n"; out != want {
		t.Errorf("%s printed %q, want %q", ref, out, want)
	}
}

// TestAdmission has images whose layers containerd knows already: it pulls them
// without a word to the snapshotter, and no container is made of what the policy
// refuses.
func TestAdmission(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	id := resource.ID{Repository: "default", Type: "policy", Tag: "image"}
	s := newSigner(t)
	allow := func(repositories ...string) {
		t.Helper()
		scopes := []string{fmt.Sprintf(`%q:[{"type":"insecureAcceptAnything"}]`, strings.TrimSuffix(m.PauseRef(), ":1"))}
		for _, r := range repositories {
			scopes = append(scopes, fmt.Sprintf(`%q:[{"type":"sigstoreSigned","keyData":%q,"signedIdentity":{"type":"matchRepository"}}]`, m.RegistryHost+"/"+r, s.public(t)))
		}
		m.put(t, id, []byte(`{"default":[{"type":"reject"}],"transports":{"docker":{`+strings.Join(scopes, ",")+`}}}`))
	}
	allow("good")
	m.configureGuest(t, "[policy]\nimage = \""+id.URI().String()+"\"\nrefresh = \"1ms\"\n")
	m.startPod()
	good := m.publish(t, "good", testbed.ImageOptions{})
	s.sign(t, good)
	m.runs(t, good)

	t.Run("another name", func(t *testing.T) { m.refusesAnotherName(t, good) })
	t.Run("registry away", func(t *testing.T) {
		if err := m.Proxy.Away(); err != nil {
			t.Fatal(err)
		}
		m.prints(t, good, "offline", good.ref)
		if err := m.Proxy.Back(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("tampered tag", func(t *testing.T) { m.refusesTamperedTag(t, good) })
	t.Run("another namespace", func(t *testing.T) { m.refusesInNamespace(t, good) })
	t.Run("stricter policy", func(t *testing.T) {
		byDigest := strings.TrimSuffix(good.ref, ":1") + "@" + digest.FromBytes(good.raw).String()
		allow()
		m.notCreated(t, byDigest, "PermissionDenied", "requires reject", good.name)
		allow("good")
		m.prints(t, good, "again", byDigest)
	})
	t.Run("nobody to ask", func(t *testing.T) { m.refusesWhatNobodyKnows(t, good) })
}

func (m *machine) refusesAnotherName(t *testing.T, good *published) {
	t.Helper()
	bad := tamper(t, good, "bad", m.RegistryHost+"/bad:1")
	m.pulled(t, bad.ref)
	texts := []string{"PermissionDenied", "image " + bad.ref + " has the layers", "crictl rmi", "default requires reject"}
	m.notCreated(t, bad.ref, texts...)
	m.notCreated(t, good.ref, texts...) // who can tell which of both it is made from?
	if err := m.RemoveImage(t.Context(), bad.ref); err != nil {
		t.Fatal(err)
	}
	m.prints(t, good, "after-bad", good.ref)
}

// refusesTamperedTag has the registry change what the good tag is.
func (m *machine) refusesTamperedTag(t *testing.T, good *published) {
	t.Helper()
	evil := tamper(t, good, "evil", good.ref)
	m.pulled(t, evil.ref)
	byDigest := strings.TrimSuffix(good.ref, ":1") + "@" + digest.FromBytes(good.raw).String()
	texts := []string{"PermissionDenied", "image " + good.ref + " has the layers", "requires sigstoreSigned", "no sigstore signature"}
	m.notCreated(t, evil.ref, texts...)
	m.notCreated(t, byDigest, texts...)
	if err := m.RemoveImage(t.Context(), evil.ref); err != nil {
		t.Fatal(err)
	}
	m.prints(t, good, "after-evil", byDigest)
}

// refusesInNamespace has one namespace's images say nothing about another's.
func (m *machine) refusesInNamespace(t *testing.T, good *published) {
	t.Helper()
	const ns = "default"
	byDigest := strings.TrimSuffix(good.ref, ":1") + "@" + digest.FromBytes(good.raw).String()
	bad := tamper(t, good, "other", m.RegistryHost+"/other:1")
	for _, ref := range []string{byDigest, bad.ref} {
		if err := m.CtrPull(t.Context(), ns, "coffer", ref); err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.CtrRun(t.Context(), ns, "coffer", byDigest, "refused", "cat", "/secret")
	m.saysWhy(t, err, "image "+bad.ref+" has the layers", "ctr -n "+ns+" images rm", "requires reject")
	m.prints(t, good, "in-k8s", byDigest)
	if _, err := m.Ctr(t.Context(), ns, "images", "rm", "--sync", bad.ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.CtrRun(t.Context(), ns, "coffer", byDigest, "allowed", "cat", "/secret")
	if err != nil || out != good.Secret+"\n" {
		t.Errorf("ctr run printed %q, %v", out, err)
	}
}

// refusesWhatNobodyKnows has a guest that has no verdict yet, and then no guest.
func (m *machine) refusesWhatNobodyKnows(t *testing.T, good *published) {
	t.Helper()
	byDigest := strings.TrimSuffix(good.ref, ":1") + "@" + digest.FromBytes(good.raw).String()
	if err := errors.Join(m.Proxy.Away(), m.Guest.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	m.notCreated(t, byDigest, "Unavailable", "may be used cannot be told", "signatures cannot be read")
	if err := errors.Join(m.Proxy.Back(t.Context()), m.Guest.Stop()); err != nil {
		t.Fatal(err)
	}
	m.notCreated(t, byDigest, "Unavailable", "whether there is an image policy is not known", "coffer-guest is not running")
	if err := m.Guest.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.prints(t, good, "at-last", byDigest)
}
