// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	jwe "github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// keyPair is an RSA recipient for ocicrypt's JWE scheme.
type keyPair struct{ public, private []byte }

func newKeyPair(t testing.TB) keyPair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{
		public:  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		private: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	}
}

func (k keyPair) decryptConfig() *config.DecryptConfig {
	return &config.DecryptConfig{Parameters: map[string][][]byte{
		"privkeys":           {k.private},
		"privkeys-passwords": {nil},
	}}
}

func randomBytes(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// seal encrypts random bytes without ocicrypt, for tests that need many layers.
func seal(t testing.TB, size int) sealed {
	t.Helper()
	plain, key, nonce := randomBytes(t, size), randomBytes(t, 32), randomBytes(t, 16)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	blob := make([]byte, size)
	cipher.NewCTR(block, nonce).XORKeyStream(blob, plain)
	mac := hmac.New(sha256.New, key)
	mac.Write(blob)
	return sealed{
		plain: plain,
		blob:  blob,
		pub:   layercrypt.PublicOptions{Cipher: layercrypt.Cipher, HMAC: mac.Sum(nil)},
		priv: layercrypt.PrivateOptions{
			SymKey:        key,
			Digest:        digestOf(plain),
			CipherOptions: map[string][]byte{"nonce": nonce},
		},
	}
}

// What ocicrypt encrypts must read here, from the annotations up.
func TestReadsOcicrypt(t *testing.T) {
	t.Parallel()
	keys := newKeyPair(t)
	for _, size := range []int{0, 1, 16 << 10, 100_000} {
		plain := randomBytes(t, size)
		r, finish, err := ocicrypt.EncryptLayer(&config.EncryptConfig{
			Parameters: map[string][][]byte{"pubkeys": {keys.public}},
		}, bytes.NewReader(plain), ocispec.Descriptor{Digest: digest.FromBytes(plain)})
		if err != nil {
			t.Fatal(err)
		}
		blob, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		annotations, err := finish()
		if err != nil {
			t.Fatal(err)
		}

		packets, err := layercrypt.KeyPackets(annotations)
		if err != nil {
			t.Fatal(err)
		}
		if len(packets) != 1 || packets[0].Scheme != "jwe" {
			t.Fatalf("key packets: %v", packets)
		}
		options, err := jwe.NewKeyWrapper().UnwrapKey(keys.decryptConfig(), packets[0].Data)
		if err != nil {
			t.Fatal(err)
		}
		s := sealed{plain: plain, blob: blob}
		if s.priv, err = layercrypt.ParsePrivateOptions(options); err != nil {
			t.Fatal(err)
		}
		if s.pub, err = layercrypt.PublicOptionsOf(annotations); err != nil {
			t.Fatal(err)
		}
		if s.priv.Digest != digestOf(plain) {
			t.Errorf("wrapped digest is %s", s.priv.Digest)
		}
		d := s.reader(t, bytes.NewReader(blob))
		got, err := io.ReadAll(d)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: plaintext differs, error %v", size, err)
		}
		if err := d.Verify(s.expect()); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// And ocicrypt must read what these tests take for the format.
func TestOcicryptReadsSealed(t *testing.T) {
	t.Parallel()
	keys, s := newKeyPair(t), seal(t, 70_000)
	options, err := json.Marshal(map[string]any{
		"symkey":        s.priv.SymKey,
		"digest":        s.priv.Digest,
		"cipheroptions": s.priv.CipherOptions,
	})
	if err != nil {
		t.Fatal(err)
	}
	packet, err := jwe.NewKeyWrapper().WrapKeys(&config.EncryptConfig{
		Parameters: map[string][][]byte{"pubkeys": {keys.public}},
	}, options)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := json.Marshal(s.pub)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := ocicrypt.DecryptLayer(keys.decryptConfig(), bytes.NewReader(s.blob), ocispec.Descriptor{
		Annotations: map[string]string{
			layercrypt.PublicOptionsKey:             base64.StdEncoding.EncodeToString(pub),
			"org.opencontainers.image.enc.keys.jwe": base64.StdEncoding.EncodeToString(packet),
		},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, s.plain) {
		t.Errorf("plaintext differs, error %v", err)
	}
}
