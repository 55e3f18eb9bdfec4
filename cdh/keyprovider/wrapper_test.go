// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keyprovider_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/cdh/keyprovider"
	"github.com/coffer-cc/coffer/cdh/keywrap"
)

const jweAnnotation = "org.opencontainers.image.enc.keys.jwe"

// wrapper is the process's one wrapper, as ocicrypt's global map wants it.
var wrapper = keyprovider.New() //nolint:gochecknoglobals // registered once for the process

func TestMain(m *testing.M) {
	ocicrypt.RegisterKeyWrapper(keywrap.Scheme, wrapper)
	m.Run()
}

// addKEK makes a fresh KEK known under a name of the test's own.
func addKEK(t *testing.T) (kid string, kek []byte) {
	t.Helper()
	kid, kek = "kbs:///test/key/"+strings.ReplaceAll(t.Name(), "/", "-"), keyprovider.GenerateKEK()
	if err := wrapper.Add(kid, kek); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wrapper.Remove(kid) })
	return kid, kek
}

func encrypt(t *testing.T, cc config.CryptoConfig, plain []byte) ([]byte, ocispec.Descriptor) {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(plain), Size: int64(len(plain))}
	r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader(plain), desc)
	if err != nil {
		t.Fatal(err)
	}
	ciphertext, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if desc.Annotations, err = finish(); err != nil {
		t.Fatal(err)
	}
	return ciphertext, desc
}

func decrypt(dc *config.DecryptConfig, ciphertext []byte, desc ocispec.Descriptor) ([]byte, error) {
	r, _, err := ocicrypt.DecryptLayer(dc, bytes.NewReader(ciphertext), desc, false)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// jweKeys returns a recipient's public and private key in PEM.
func jweKeys(t *testing.T) (public, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})
}

// TestTwoRecipients encrypts once for the key service and for a JWE recipient;
// each alone can decrypt.
func TestTwoRecipients(t *testing.T) {
	t.Parallel()
	kid, kek := addKEK(t)
	public, private := jweKeys(t)
	jwe, err := config.EncryptWithJwe([][]byte{public})
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("a layer")
	ciphertext, desc := encrypt(t, config.CombineCryptoConfigs([]config.CryptoConfig{keyprovider.EncryptTo(kid), jwe}), plain)

	want := []string{jweAnnotation, keywrap.AnnotationKey, "org.opencontainers.image.enc.pubopts"}
	if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(maps.Keys(desc.Annotations))); diff != "" {
		t.Fatalf("annotations (-want +got):\n%s", diff)
	}
	packet := onlyPacket(t, desc)
	if packet.KID() != kid {
		t.Errorf("got kid %q, want %q", packet.KID(), kid)
	}
	if _, err := keywrap.Unwrap(kek, packet); err != nil {
		t.Errorf("unwrap as the guest does: %v", err)
	}

	forKBS, forJWE := desc, desc
	forKBS.Annotations = maps.Clone(desc.Annotations)
	delete(forKBS.Annotations, jweAnnotation)
	forJWE.Annotations = maps.Clone(desc.Annotations)
	delete(forJWE.Annotations, keywrap.AnnotationKey)
	if got, err := decrypt(&config.DecryptConfig{}, ciphertext, forKBS); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("with the KEK: got %q, error %v", got, err)
	}
	dc, err := config.DecryptWithPrivKeys([][]byte{private}, [][]byte{nil})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt(dc.DecryptConfig, ciphertext, forJWE); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("with the private key: got %q, error %v", got, err)
	}
}

func onlyPacket(t *testing.T, desc ocispec.Descriptor) keywrap.Packet {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(desc.Annotations[keywrap.AnnotationKey])
	if err != nil {
		t.Fatal(err)
	}
	p, err := keywrap.ParsePacket(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestManyImages encrypts side by side, each image with its own KEK.
func TestManyImages(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			kid, kek := addKEK(t)
			_, desc := encrypt(t, keyprovider.EncryptTo(kid), []byte("a layer"))
			if _, err := keywrap.Unwrap(kek, onlyPacket(t, desc)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOtherRecipients wants no packet where none was asked for.
func TestOtherRecipients(t *testing.T) {
	t.Parallel()
	public, _ := jweKeys(t)
	jwe, err := config.EncryptWithJwe([][]byte{public})
	if err != nil {
		t.Fatal(err)
	}
	_, desc := encrypt(t, jwe, []byte("a layer"))
	if desc.Annotations[keywrap.AnnotationKey] != "" {
		t.Error("there is a packet")
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	w := keyprovider.New()
	if !w.NoPossibleKeys(nil) {
		t.Error("an empty wrapper says that it can decrypt")
	}
	if err := w.Add("k", make([]byte, 16)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("short key: got error %v", err)
	}
	if err := w.Add("k", bytes.Repeat([]byte{0xAB}, keywrap.KEKSize)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WrapKeys(keyprovider.EncryptTo("other").EncryptConfig, []byte("{}")); !errdefs.IsNotFound(err) {
		t.Errorf("unknown key: got error %v", err)
	}
	two := config.CombineCryptoConfigs([]config.CryptoConfig{keyprovider.EncryptTo("k"), keyprovider.EncryptTo("l")})
	if _, err := w.WrapKeys(two.EncryptConfig, []byte("{}")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two keys: got error %v", err)
	}
	for packet, is := range map[string]func(error) bool{
		`{`: errdefs.IsInvalidArgument,
		`{"kid":"other","wrapped_data":"AA==","iv":"AA==","wrap_type":"A256GCM"}`:                             errdefs.IsNotFound,
		`{"kid":"k","wrapped_data":"AA==","iv":"AA==","wrap_type":"A256CTR"}`:                                 errdefs.IsNotImplemented,
		`{"kid":"k","wrapped_data":"AAAAAAAAAAAAAAAAAAAAAAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`: errdefs.IsDataLoss,
	} {
		if _, err := w.UnwrapKey(nil, []byte(packet)); !is(err) {
			t.Errorf("%s: got error %v", packet, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", w, w, w, w.LogValue()); strings.Contains(s, "171") || strings.Contains(s, "ab") {
		t.Errorf("the keys are printed: %s", s)
	}
	w.Remove("k")
	if !w.NoPossibleKeys(nil) {
		t.Error("the key was not removed")
	}
}

func TestGetRecipients(t *testing.T) {
	t.Parallel()
	kid, _ := addKEK(t)
	_, desc := encrypt(t, keyprovider.EncryptTo(kid), []byte("a layer"))
	value := desc.Annotations[keywrap.AnnotationKey]
	got, err := wrapper.GetRecipients(value + "," + value)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{kid, kid}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "*", "e30="} {
		if _, err := wrapper.GetRecipients(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got error %v", bad, err)
		}
	}
}
