// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/kbs/kbstest"
)

// The key of RFC 7517 A.2, as a guest's. It signs nothing and protects nothing.
const (
	wireX = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"
	wireY = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
	wireD = "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"
)

// TestWire makes one whole handshake from literal texts and with the standard
// library alone: what the other side of the wire must be able to do without a
// line of this project.
func TestWire(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("0123456789abcdef0123456789abcdef"))

	a := send(t, s, http.MethodPost, "/kbs/v0/auth",
		[]byte(`{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}`),
		"Content-Type", "application/json")
	challenge := match(t, a, `^\{"nonce":"([A-Za-z0-9+/]{43}=)","extra-params":""\}$`)
	nonce := challenge[1]
	setCookie := a.header.Values("Set-Cookie")
	if len(setCookie) != 1 || !regexp.MustCompile(`^kbs-session-id=[0-9a-f]{32}; Path=/; Expires=[A-Z][a-z]{2}, .* GMT; HttpOnly; SameSite=Strict$`).MatchString(setCookie[0]) {
		t.Fatalf("Set-Cookie %q", setCookie)
	}
	cookie, _, _ := strings.Cut(setCookie[0], ";")

	const jwk = `{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"` + wireX + `","y":"` + wireY + `"}`
	bound := sha512.Sum384([]byte(`{"additional-evidence":"","nonce":"` + nonce + `","tee-pubkey":` + jwk + `}`))
	reportData := base64.StdEncoding.EncodeToString(bound[:])
	a = send(t, s, http.MethodPost, "/kbs/v0/attest",
		[]byte(`{"init-data":null,"runtime-data":{"nonce":"`+nonce+`","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"`+wireX+`","y":"`+wireY+`","kid":"left out of the digest"}},`+
			`"tee-evidence":{"primary_evidence":{"svn":"1","report_data":"`+reportData+`"},"additional_evidence":""}}`),
		"Content-Type", "application/json", "Cookie", cookie)
	token := match(t, a, `^\{"token":"([\w-]+\.[\w-]+\.[\w-]+)"\}$`)[1]
	if again := a.header.Values("Set-Cookie"); len(again) != 1 || again[0] != setCookie[0] {
		t.Errorf("attest set cookie %q, auth %q", again, setCookie)
	}
	wireToken(t, token, nonce, reportData)

	seen := map[string]bool{}
	for name, headers := range map[string][]string{
		"token":  {"Authorization", "Bearer " + token},
		"cookie": {"Cookie", cookie},
	} {
		a = send(t, s, http.MethodGet, "/kbs/v0/resource/default/key/1", nil, headers...)
		got, cek, iv := wireOpen(t, a)
		if string(got) != "0123456789abcdef0123456789abcdef" {
			t.Errorf("%s: %q", name, got)
		}
		if seen[cek] || seen[iv] || strings.Count(cek, "\x00") > 8 {
			t.Errorf("%s: content key or iv is not random", name)
		}
		seen[cek], seen[iv] = true, true
	}
}

func match(t *testing.T, a answer, pattern string) []string {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(string(a.body))
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" || found == nil {
		t.Fatalf("%d %q %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	return found
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// wireToken verifies the signature with the key of the header, which a relying
// party would have to trust first, and looks at the claims.
func wireToken(t *testing.T, token, nonce, reportData string) {
	t.Helper()
	parts := strings.Split(token, ".")
	var header struct {
		Typ, Alg, Kid string
		JWK           struct{ Kty, Crv, Alg, X, Y string }
	}
	if err := json.Unmarshal(decode(t, parts[0]), &header); err != nil {
		t.Fatal(err)
	}
	if header.Typ != "JWT" || header.Alg != "ES256" || header.JWK.Kty != "EC" || header.JWK.Crv != "P-256" || header.JWK.Alg != "ES256" {
		t.Errorf("header %+v", header)
	}
	thumb := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + header.JWK.X + `","y":"` + header.JWK.Y + `"}`))
	if header.Kid != base64.RawURLEncoding.EncodeToString(thumb[:]) {
		t.Errorf("kid %s is not the thumbprint of RFC 7638", header.Kid)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, append(decode(t, header.JWK.X), decode(t, header.JWK.Y)...)...))
	if err != nil {
		t.Fatal(err)
	}
	digest, sig := sha256.Sum256([]byte(parts[0]+"."+parts[1])), decode(t, parts[2])
	if len(sig) != 64 || !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("signature")
	}
	var claims struct {
		Profile string `json:"eat_profile"`
		Submods map[string]struct {
			Status   string `json:"ear.status"`
			Policy   string `json:"ear.appraisal-policy-id"`
			Evidence struct {
				Sample      map[string]any `json:"sample"`
				ReportData  string         `json:"report_data"`
				RuntimeData map[string]any `json:"runtime_data_claims"`
			} `json:"ear.veraison.annotated-evidence"`
		} `json:"submods"`
	}
	if err := json.Unmarshal(decode(t, parts[1]), &claims); err != nil {
		t.Fatal(err)
	}
	cpu, ok := claims.Submods["cpu0"]
	if !ok || len(claims.Submods) != 1 || claims.Profile != "tag:github.com,2024:confidential-containers/Trustee" ||
		cpu.Status != "affirming" || cpu.Policy != "default" || cpu.Evidence.ReportData != reportData ||
		cpu.Evidence.RuntimeData["nonce"] != nonce || cpu.Evidence.RuntimeData["additional-evidence"] != "" || cpu.Evidence.Sample["svn"] != "1" {
		t.Errorf("claims %+v", claims)
	}
	pub, _ := cpu.Evidence.RuntimeData["tee-pubkey"].(map[string]any)
	if len(pub) != 5 || pub["x"] != wireX || pub["y"] != wireY || pub["alg"] != "ECDH-ES+A256KW" {
		t.Errorf("tee-pubkey %v", pub)
	}
}

// wireOpen decrypts a flattened JWE by RFC 7518 4.6, with the header as a
// client re-serialises it, and shows the content key and the iv.
func wireOpen(t *testing.T, a answer) (plain []byte, contentKey, iv string) {
	t.Helper()
	m := match(t, a, `^\{"protected":"([\w-]+)","encrypted_key":"([\w-]{54})","iv":"([\w-]{16})","ciphertext":"([\w-]+)","tag":"([\w-]{22})"\}$`)
	epk := regexp.MustCompile(`^\{"alg":"ECDH-ES\+A256KW","enc":"A256GCM","epk":\{"crv":"P-256","kty":"EC","x":"([\w-]{43})","y":"([\w-]{43})"\}\}$`).
		FindStringSubmatch(string(decode(t, m[1])))
	if epk == nil {
		t.Fatalf("protected header %s", decode(t, m[1]))
	}
	point, err := ecdh.P256().NewPublicKey(append([]byte{4}, append(decode(t, epk[1]), decode(t, epk[2])...)...))
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdh.P256().NewPrivateKey(decode(t, wireD))
	if err != nil {
		t.Fatal(err)
	}
	z, err := own.ECDH(point)
	if err != nil {
		t.Fatal(err)
	}
	kdf := sha256.New()
	kdf.Write([]byte{0, 0, 0, 1})
	kdf.Write(z)
	kdf.Write([]byte("\x00\x00\x00\x0eECDH-ES+A256KW\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"))
	cek := keyUnwrap(t, kdf.Sum(nil), decode(t, m[2]))
	gcmBlock, err := aes.NewCipher(cek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(gcmBlock)
	if err != nil {
		t.Fatal(err)
	}
	plain, err = gcm.Open(nil, decode(t, m[3]), append(decode(t, m[4]), decode(t, m[5])...), []byte(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return plain, string(cek), m[3]
}

// keyUnwrap is RFC 3394 2.2.2.
func keyUnwrap(t *testing.T, kek, wrapped []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(len(wrapped)/8 - 1)
	a, r := wrapped[:8], bytes.Clone(wrapped[8:])
	for j := uint64(6); j > 0; j-- {
		for i := n; i > 0; i-- {
			at := r[(i-1)*8 : i*8]
			in := binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(a)^((j-1)*n+i))
			out := make([]byte, aes.BlockSize)
			block.Decrypt(out, append(in, at...))
			a = out[:8]
			copy(at, out[8:])
		}
	}
	if hex.EncodeToString(a) != "a6a6a6a6a6a6a6a6" {
		t.Fatal("the content key does not unwrap")
	}
	return r
}
