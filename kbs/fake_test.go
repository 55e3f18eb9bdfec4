// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeKBS is the server's side of the protocol, written from its description
// and sharing no code with the client. The hooks answer in its place where they
// return true; n counts the requests of that kind from 1.
type fakeKBS struct {
	*httptest.Server
	t        *testing.T
	secret   []byte
	lifetime time.Duration
	extra    string // extra-params of the challenge
	onAuth   hook
	onAttest hook
	onGet    hook

	mu       sync.Mutex
	count    map[string]int
	nonces   map[string]string          // by cookie
	teeKeys  map[string]*ecdh.PublicKey // by token
	lastAuth map[string]any
}

type hook func(w http.ResponseWriter, r *http.Request, n int) bool

func newFake(t *testing.T) *fakeKBS {
	t.Helper()
	f := &fakeKBS{
		t: t, secret: []byte("a key of 32 bytes, or nearly so!"), lifetime: 5 * time.Minute, extra: `""`,
		count: map[string]int{}, nonces: map[string]string{}, teeKeys: map[string]*ecdh.PublicKey{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kbs/v0/auth", f.hooked("auth", &f.onAuth, f.auth))
	mux.HandleFunc("POST /kbs/v0/attest", f.hooked("attest", &f.onAttest, f.attest))
	mux.HandleFunc("GET /kbs/v0/resource/{path...}", f.hooked("get", &f.onGet, f.get))
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeKBS) hooked(kind string, h *hook, then http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.count[kind]++
		n := f.count[kind]
		f.mu.Unlock()
		if *h == nil || !(*h)(w, r, n) {
			then(w, r)
		}
	}
}

func (f *fakeKBS) counts(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[kind]
}

func (f *fakeKBS) auth(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		fail(w, 401, "SerdeError", err.Error())
		return
	}
	cookie, nonce := rand.Text(), base64.StdEncoding.EncodeToString([]byte(rand.Text()))
	f.mu.Lock()
	f.lastAuth = body
	f.nonces[cookie] = nonce
	f.mu.Unlock()
	// A clock that disagrees with the client's must not cost the session.
	w.Header().Set("Set-Cookie", "kbs-session-id="+cookie+"; Expires=Thu, 01 Jan 1970 00:00:00 GMT")
	fmt.Fprintf(w, `{"nonce":%q,"extra-params":%s,"later":true}`, nonce, f.extra)
}

func (f *fakeKBS) attest(w http.ResponseWriter, r *http.Request) {
	cookie, err := r.Cookie("kbs-session-id")
	if err != nil {
		fail(w, 401, "AttestationError", "no cookie")
		return
	}
	var body struct {
		InitData json.RawMessage `json:"init-data"`
		Runtime  struct {
			Nonce string            `json:"nonce"`
			Key   map[string]string `json:"tee-pubkey"`
		} `json:"runtime-data"`
		Evidence struct {
			Primary    map[string]string `json:"primary_evidence"`
			Additional *string           `json:"additional_evidence"`
		} `json:"tee-evidence"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		fail(w, 401, "SerdeError", err.Error())
		return
	}
	f.mu.Lock()
	nonce := f.nonces[cookie.Value]
	delete(f.nonces, cookie.Value) // one use
	f.mu.Unlock()
	if nonce == "" || body.Runtime.Nonce != nonce || body.Evidence.Additional == nil || string(body.InitData) != "null" {
		fail(w, 401, "AttestationError", "wrong nonce or message")
		return
	}
	// Maps are encoded in the order of their keys, which for these texts is
	// the canonical form.
	hashed, _ := json.Marshal(map[string]any{"additional-evidence": "", "nonce": nonce, "tee-pubkey": body.Runtime.Key})
	var want []byte
	switch {
	case strings.Contains(f.extra, "512"):
		sum := sha512.Sum512(hashed)
		want = sum[:]
	case strings.Contains(f.extra, "256"):
		sum := sha256.Sum256(hashed)
		want = sum[:]
	default:
		sum := sha512.Sum384(hashed)
		want = sum[:]
	}
	if body.Evidence.Primary["report_data"] != base64.StdEncoding.EncodeToString(want) {
		fail(w, 401, "AttestationError", "report data does not match")
		return
	}
	x, _ := base64.RawURLEncoding.DecodeString(body.Runtime.Key["x"])
	y, _ := base64.RawURLEncoding.DecodeString(body.Runtime.Key["y"])
	pub, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		fail(w, 401, "AttestationError", "bad key")
		return
	}
	token := f.token()
	f.mu.Lock()
	f.teeKeys[token] = pub
	f.mu.Unlock()
	fmt.Fprintf(w, `{"token":%q}`, token)
}

func (f *fakeKBS) token() string {
	encode := base64.RawURLEncoding.EncodeToString
	iat := time.Now().Add(-time.Hour).Unix() // the clocks differ
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, iat, iat+int64(f.lifetime.Seconds()))
	return encode([]byte(`{"alg":"ES256"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte(rand.Text()))
}

func (f *fakeKBS) get(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	f.mu.Lock()
	pub := f.teeKeys[token]
	f.mu.Unlock()
	if pub == nil {
		fail(w, 401, "TokenVerifierError", "token "+token+" is not mine")
		return
	}
	_, _ = w.Write(sealJWE(f.t, pub, f.secret))
}

func fail(w http.ResponseWriter, status int, variant, detail string) {
	w.WriteHeader(status)
	body, _ := json.Marshal(map[string]string{
		"type": "https://github.com/confidential-containers/kbs/errors/" + variant, "detail": detail,
	})
	_, _ = w.Write(body)
}

// sealJWE encrypts plain as a service does, from RFC 7518 sections 4.6 and 5.3
// and RFC 3394.
func sealJWE(t *testing.T, pub *ecdh.PublicKey, plain []byte) []byte {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	eph, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	z, err := eph.ECDH(pub)
	if err != nil {
		t.Fatal(err)
	}
	const alg = "ECDH-ES+A256KW"
	var kdf bytes.Buffer
	kdf.Write([]byte{0, 0, 0, 1})
	kdf.Write(z)
	_ = binary.Write(&kdf, binary.BigEndian, uint32(len(alg)))
	kdf.WriteString(alg)
	kdf.Write([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0})
	kek := sha256.Sum256(kdf.Bytes())
	cek := make([]byte, 32)
	_, _ = rand.Read(cek)
	point := eph.PublicKey().Bytes()
	header := fmt.Sprintf(`{"alg":%q,"enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":%q,"y":%q}}`,
		alg, encode(point[1:33]), encode(point[33:]))
	protected := encode([]byte(header))
	block, err := aes.NewCipher(cek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(iv)
	sealed := gcm.Seal(nil, iv, plain, []byte(protected))
	n := len(sealed) - gcm.Overhead()
	out, err := json.Marshal(map[string]string{
		"protected": protected, "encrypted_key": encode(wrapKey(t, kek[:], cek)), "iv": encode(iv),
		"ciphertext": encode(sealed[:n]), "tag": encode(sealed[n:]), "aad": "not to be used",
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wrapKey(t *testing.T, kek, key []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	a := bytes.Repeat([]byte{0xa6}, 8)
	r := bytes.Clone(key)
	n := len(key) / 8
	for j := range 6 {
		for i := range n {
			b := append(bytes.Clone(a), r[8*i:8*i+8]...)
			block.Encrypt(b, b)
			a = b[:8]
			a[7] ^= byte(n*j + i + 1)
			copy(r[8*i:], b[8:])
		}
	}
	return append(bytes.Clone(a), r...)
}

// source is an attester whose evidence is the report data itself.
type source struct {
	err  error
	wait func(ctx context.Context) error
}

func (source) TEE() string { return "sample" }

func (s source) Evidence(ctx context.Context, reportData []byte) ([]byte, error) {
	if s.wait != nil {
		if err := s.wait(ctx); err != nil {
			return nil, err
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	return json.Marshal(map[string]string{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(reportData)})
}

func newTestClient(t *testing.T, url string, src EvidenceSource, opts ClientOptions) *Client {
	t.Helper()
	c, err := NewClient(url, src, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func drain(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
