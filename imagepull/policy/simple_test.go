// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/policy"
)

func simplePayload(ref string, d digest.Digest) []byte {
	return payload("atomic container signature", ref, d)
}

func storeAt(t *testing.T, yaml string) policy.Options {
	t.Helper()
	l, err := policy.ParseLookaside([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return policy.Options{Lookaside: l}
}

// store puts signatures of d into a folder as skopeo does.
func store(t *testing.T, dir string, d digest.Digest, signatures ...[]byte) {
	t.Helper()
	dir = filepath.Join(dir, "team/app@sha256="+d.Encoded())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, s := range signatures {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("signature-%d", i+1)), s, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func signedBy(key []byte, more string) string {
	return requires(`{"type":"signedBy","keyType":"GPGKeys","keyData":"` + b64(key) + `"` + more + `}`)
}

func TestSignedBy(t *testing.T) {
	t.Parallel()
	key, eve := gpgKey(t, nil), gpgKey(t, nil)
	past := func() time.Time { return time.Now().AddDate(-1, 0, 0) }
	old := gpgKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: past, KeyLifetimeSecs: 3600})
	oldest := gpgKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: past})
	for name, c := range map[string]struct {
		sign  func(*scene) [][]byte // signatures of the manifest
		index bool                  // they are the index's
		more  string
		class error
		parts []string
	}{
		"manifest": {sign: func(s *scene) [][]byte {
			return [][]byte{gpgSigned(s.T, key, simplePayload(imageName, s.image.Manifest), nil)}
		}},
		"index": {index: true, sign: func(s *scene) [][]byte {
			return [][]byte{gpgSigned(s.T, key, simplePayload(imageName, s.image.Index), nil)}
		}},
		"third of three": {sign: func(s *scene) [][]byte {
			p := simplePayload(imageName, s.image.Manifest)
			return [][]byte{[]byte("no"), gpgSigned(s.T, eve, p, nil), gpgSigned(s.T, key, p, nil)}
		}},
		"compressed": {sign: func(s *scene) [][]byte {
			return [][]byte{gpgSigned(s.T, key, simplePayload(imageName, s.image.Manifest), nil)}
		}},
		"none": {sign: func(*scene) [][]byte { return nil }, class: errDenied, parts: []string{"default requires signedBy: the image has no signature: sign it"}},
		"another key": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, eve, simplePayload(imageName, s.image.Manifest), nil)}
			},
			class: errDenied, parts: []string{"signature-1 of " + "sha256:", "not signed by a trusted key but by"},
		},
		"another digest": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, key, simplePayload(imageName, digest.FromString("x")), nil)}
			},
			class: errDenied, parts: []string{"it is for sha256:"},
		},
		"another name": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, key, simplePayload("registry.example/team/app:2.0", s.image.Manifest), nil)}
			},
			class: errDenied, parts: []string{`it is for "registry.example/team/app:2.0"`},
		},
		"another name, as the policy says": {more: `,"signedIdentity":{"type":"matchRepository"}`, sign: func(s *scene) [][]byte {
			return [][]byte{gpgSigned(s.T, key, simplePayload("registry.example/team/app:2.0", s.image.Manifest), nil)}
		}},
		"payload of cosign": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, key, cosignPayload(imageName, s.image.Manifest), nil)}
			},
			class: errDenied, parts: []string{"payload.critical.type"},
		},
		"payload with null": {
			sign: func(s *scene) [][]byte {
				p := simplePayload(imageName, s.image.Manifest)
				p = append(p[:bytes.Index(p, []byte(`"optional"`))], `"optional":null}`...)
				return [][]byte{gpgSigned(s.T, key, p, nil)}
			},
			class: errDenied, parts: []string{"payload.optional: not an object"},
		},
		"not signed at all": {
			sign: func(s *scene) [][]byte {
				var b bytes.Buffer
				w, _ := packet.SerializeLiteral(nopCloser{&b}, true, "", 0)
				_, _ = w.Write(simplePayload(imageName, s.image.Manifest))
				_ = w.Close()
				return [][]byte{b.Bytes()}
			},
			class: errDenied, parts: []string{"without a signature"},
		},
		"one byte changed": {
			sign: func(s *scene) [][]byte {
				b := gpgSigned(s.T, key, simplePayload(imageName, s.image.Manifest), nil)
				return [][]byte{bytes.Replace(b, []byte("app:1.0"), []byte("app:1.1"), 1), bytes.Replace(b, []byte(`"test"`), []byte(`"Test"`), 1)}
			},
			class: errDenied, parts: []string{"the signature does not hold", "signature-2"},
		},
		"cut": {
			sign: func(s *scene) [][]byte {
				b := gpgSigned(s.T, key, simplePayload(imageName, s.image.Manifest), nil)
				return [][]byte{b[:len(b)-20], b[:40]}
			},
			class: errDenied, parts: []string{"no signature is accepted"},
		},
		"key has expired": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, old, simplePayload(imageName, s.image.Manifest), &packet.Config{Time: past})}
			},
			class: errDenied, parts: []string{"the signature does not hold", "expired"},
		},
		"signature has expired": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, oldest, simplePayload(imageName, s.image.Manifest), &packet.Config{Time: past, SigLifetimeSecs: 60})}
			},
			class: errDenied, parts: []string{"the signature does not hold", "expired"},
		},
		"too long": {
			sign:  func(*scene) [][]byte { return [][]byte{make([]byte, 1<<20)} },
			class: errDenied, parts: []string{"longer than 65536 bytes"},
		},
		"signs too much": {
			sign: func(s *scene) [][]byte {
				return [][]byte{gpgSigned(s.T, key, bytes.Repeat([]byte(" "), 1<<20), &packet.Config{DefaultCompressionAlgo: packet.CompressionZLIB})}
			},
			class: errDenied, parts: []string{"no signature is accepted"},
		},
		"a thousand": {
			sign: func(s *scene) [][]byte {
				return many(gpgSigned(s.T, eve, simplePayload(imageName, s.image.Manifest), nil), 1000)
			},
			class: errDenied, parts: []string{"and 126 more"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			dir := t.TempDir()
			d := s.image.Manifest
			if c.index {
				d = s.image.Index
			}
			store(t, dir, d, c.sign(s)...)
			ring := append(publicKey(t, key), publicKey(t, old)...)
			ring = append(ring, publicKey(t, oldest)...)
			want(t, s.verify(signedBy(ring, c.more), storeAt(t, "default-docker:\n  lookaside: file://"+dir+"\n")), c.class, c.parts...)
			if s.asked > 0 {
				t.Errorf("the registry was asked %d times", s.asked)
			}
		})
	}
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

func many(b []byte, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

// TestSkopeo verifies what skopeo 1.9.3 signed with GnuPG 2.2: by an Ed25519
// key, and by a signing subkey of an RSA key; and what gpg makes in other ways.
func TestSkopeo(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata/skopeo-1.9.3", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ed, rsa := publicKeyring(t, read("ed.gpg")), publicKeyring(t, read("rsa.gpg"))
	for _, c := range []struct {
		signature, key string
		class          error
	}{
		{"ed.sig", "ed.gpg", nil}, {"rsa.sig", "rsa.gpg", nil}, {"rsa.sig", "rsa.asc", nil},
		{"ed.sig", "rsa.gpg", errDenied}, {"rsa.sig", "ed.gpg", errDenied},
		{"sha1.sig", "ed.gpg", errDenied}, {"clear.sig", "ed.gpg", errDenied},
		{"two.sig", "ed.gpg", nil},
	} {
		s := newScene(t)
		s.image = policy.Image{Name: imageName, Manifest: digest.FromBytes(read("manifest.json"))}
		dir := t.TempDir()
		store(t, dir, s.image.Manifest, read(c.signature))
		want(t, s.verify(signedBy(read(c.key), ""), storeAt(t, "docker:\n  registry.example:\n    sigstore: file://"+dir+"\n")), c.class)
	}
	if len(ed) != 1 || len(rsa) != 1 || len(rsa[0].Subkeys) != 1 {
		t.Error("the keys are not what they should be")
	}
}

func publicKeyring(t *testing.T, b []byte) openpgp.EntityList {
	t.Helper()
	l, err := openpgp.ReadKeyRing(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestStores is about where signatures are looked for, and what stores do.
func TestStores(t *testing.T) {
	t.Parallel()
	key := gpgKey(t, nil)
	var status, asked int
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if !strings.HasPrefix(r.URL.Path, "/base/team/app@sha256=") {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	s := newScene(t)
	doc := signedBy(publicKey(t, key), "")
	with := func(yaml string) policy.Options {
		o := storeAt(t, yaml)
		o.HTTP = server.Client()
		return o
	}
	remote := "default-docker: {lookaside: '" + server.URL + "/base'}\n"
	want(t, s.verify(doc, policy.Options{}), errDenied, "no signature store is configured", "policy.signatures")
	want(t, s.verify(doc, with("docker: {other.example: {lookaside: 'https://o.example'}}")), errDenied, "no signature store is configured for registry.example/team/app")
	want(t, s.verify(doc, with(remote)), errDenied, "the image has no signature")
	if asked != 2 {
		t.Errorf("%d requests, not one for manifest and index each", asked)
	}
	status = http.StatusServiceUnavailable
	want(t, s.verify(doc, with(remote)), errAway, "503", "try again")
	status = http.StatusForbidden
	want(t, s.verify(doc, with(remote)), errAway, "403")
	o := with(remote)
	o.HTTP = nil // does not know the server's authority
	want(t, s.verify(doc, o), errAway, "certificate")

	// The most particular entry that has a store counts; staging is no store.
	dir := t.TempDir()
	store(t, dir, s.image.Manifest, gpgSigned(t, key, simplePayload(imageName, s.image.Manifest), nil))
	want(t, s.verify(doc, with(remote+"docker:\n  registry.example/team:\n    lookaside: file://"+dir+"\n  registry.example/team/app:\n    lookaside-staging: file:///none\n  '*.example':\n    lookaside: file:///none\n")), nil)
}

// TestHTTPStore gets a signature over HTTPS.
func TestHTTPStore(t *testing.T) {
	t.Parallel()
	key := gpgKey(t, nil)
	dir := t.TempDir()
	server := httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	s := newScene(t)
	store(t, dir, s.image.Index, []byte("bad"), gpgSigned(t, key, simplePayload(imageName, s.image.Index), nil))
	o := storeAt(t, "default-docker:\n  lookaside: "+server.URL+"\n")
	o.HTTP = server.Client()
	want(t, s.verify(signedBy(publicKey(t, key), ""), o), nil)
}

func TestParseLookaside(t *testing.T) {
	t.Parallel()
	for yaml, want := range map[string]string{
		"":            "",
		"# nothing\n": "",
		"default-docker:\n  sigstore: file:///var/lib/sigstore\n  sigstore-staging: file:///x\n  use-sigstore-attachments: true\n": "",
		"docker:\n  a.b:\n    lookaside: https://a.b/c\n  '*.b.c': {sigstore: 'https://x'}\n":                                      "",
		"docker:\n  a.b: {sigstore: 'https://x'}\n  a.b:443: {sigstore: 'https://y'}\n":                                            "given twice",
		"docker:\n  a.b:\n    lookaside: http://a.b/c\n":                                                                           "neither file",
		"docker:\n  a.b:\n    lookaside: file://host/c\n":                                                                          "neither file",
		"docker:\n  a.b:\n    lookaside: https://u:p@a.b/c\n":                                                                      "neither user",
		"docker:\n  a.b:\n    lookaside: https://a.b/c?d=e\n":                                                                      "nor query",
		"docker:\n  a.b:\n    lookasid: https://a.b/c\n":                                                                           "lookasid",
		"docker:\n  a.b: {sigstore: x}\n  a.b: {sigstore: y}\n":                                                                    "already defined",
		"dockers: {}\n":               "dockers",
		"docker: {busybox: {}}\n":     "not a scope",
		"docker: {'': {}}\n":          "not a scope",
		"docker: []\n":                "cannot unmarshal",
		"docker: {}\n---\ndocker: {}": "second YAML document",
		"\t":                          "",
		strings.Repeat("#", 1<<20+1):  "longer than",
	} {
		_, err := policy.ParseLookaside([]byte(yaml))
		switch {
		case yaml == "\t":
		case want == "" && err != nil:
			t.Errorf("%q: %v", yaml, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err)):
			t.Errorf("%q: error %v, want %q", clipped(yaml), err, want)
		}
	}
}

func FuzzParseLookaside(f *testing.F) {
	f.Add([]byte("docker:\n  a.b: {lookaside: 'https://a.b/c'}\ndefault-docker:\n  sigstore: file:///x\n"))
	f.Add([]byte("a: &a [*a,*a]\ndocker: *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := policy.ParseLookaside(b); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

// TestArmoredKeys: keys may come as text, as base64 of it, and by file.
func TestArmoredKeys(t *testing.T) {
	t.Parallel()
	key, other := gpgKey(t, nil), gpgKey(t, nil)
	var text bytes.Buffer
	w, err := armor.Encode(&text, openpgp.PublicKeyType, nil)
	if err == nil {
		_, err = w.Write(publicKey(t, key))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "keys.asc")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(dir, "other.gpg")
	if err := os.WriteFile(second, publicKey(t, other), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newScene(t)
	store(t, dir, s.image.Manifest, gpgSigned(t, key, simplePayload(imageName, s.image.Manifest), nil))
	o := storeAt(t, "default-docker:\n  lookaside: file://"+dir+"\n")
	base := `{"type":"signedBy","keyType":"GPGKeys",`
	for _, members := range []string{
		`"keyData":"` + strings.ReplaceAll(text.String(), "\n", `\n`) + `"`,
		`"keyData":"` + b64(text.Bytes()) + `"`,
		`"keyPath":"` + file + `"`, `"keyPath":"file://` + file + `"`,
		`"keyPaths":["` + second + `","` + file + `"]`,
	} {
		want(t, s.verify(requires(base+members+`}`), o), nil)
	}
	want(t, s.verify(requires(base+`"keyPath":"`+second+`"}`), o), errDenied)
	want(t, s.verify(requires(base+`"keyPath":"`+filepath.Join(dir, "none")+`"}`), o), errdefs.ErrFailedPrecondition, "default[0].keyPath cannot be read", "no such file")
	if err := os.WriteFile(second, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, s.verify(requires(base+`"keyPaths":["`+file+`","`+second+`"]}`), o), errdefs.ErrInvalidArgument, "default[0].keyPaths: "+second+": no OpenPGP public key")
	want(t, s.verify(requires(base+`"keyPath":"kbs:///a/b/c"}`), o), errdefs.ErrFailedPrecondition, "no KBS is configured")
}
