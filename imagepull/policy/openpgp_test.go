// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"bytes"
	"compress/flate"
	"crypto"
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// gpgPacket has the header with the five octet length.
func gpgPacket(tag byte, body []byte) []byte {
	head := []byte{0xc0 | tag, 0xff, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[2:], uint32(len(body)))
	return append(head, body...)
}

// gpgCompressed is a compressed data packet.
func gpgCompressed(t *testing.T, content func(io.Writer) error) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{1}) // raw deflate
	w, err := flate.NewWriter(b, flate.BestCompression)
	if err == nil {
		err = content(w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return gpgPacket(8, b.Bytes())
}

// withoutIssuer is a signature that does not say by whom it is.
func withoutIssuer() []byte {
	return []byte{
		4, 0, byte(packet.PubKeyAlgoEdDSA), 8, // version, binary, SHA-256
		0, 6, 5, 2, 1, 2, 3, 4, // hashed: when
		0, 0, // not hashed: nothing
		0, 0, 0, 8, 0xff, 0, 8, 0xff,
	}
}

// claimed is a message that is said to be by e, with this signature.
func claimed(t *testing.T, e *openpgp.Entity, content, signature []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	ops := &packet.OnePassSignature{
		Version: 3, SigType: packet.SigTypeBinary, Hash: crypto.SHA256, PubKeyAlgo: packet.PubKeyAlgoEdDSA, KeyId: e.PrimaryKey.KeyId, IsLast: true,
	}
	if err := ops.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	b.Write(gpgPacket(11, append([]byte{'b', 0, 0, 0, 0, 0}, content...)))
	b.Write(gpgPacket(2, signature))
	return b.Bytes()
}

// TestHostileOpenPGP: whoever has a signature store can neither end the process
// nor keep it busy.
func TestHostileOpenPGP(t *testing.T) {
	t.Parallel()
	key := gpgKey(t, nil)
	const long = 1 << 24
	for name, c := range map[string]struct {
		sign func(*scene) []byte
		part string
	}{
		"signature without issuer": {func(s *scene) []byte {
			return claimed(s.T, key, simplePayload(imageName, s.image.Manifest), withoutIssuer())
		}, "not followed by signature"},
		"packet that is never needed": {func(s *scene) []byte {
			return gpgCompressed(s.T, func(w io.Writer) error {
				_, err := w.Write([]byte{0xc0 | 63, 0xff, long >> 24, 0, 0, 0})
				for range long >> 20 {
					if err == nil {
						_, err = w.Write(make([]byte, 1<<20))
					}
				}
				return err
			})
		}, "decompressed longer than 131072 bytes"},
		"compressed twice": {func(s *scene) []byte {
			inner := gpgCompressed(s.T, func(w io.Writer) error {
				_, err := w.Write(gpgSigned(s.T, key, simplePayload(imageName, s.image.Manifest), nil))
				return err
			})
			return gpgCompressed(s.T, func(w io.Writer) error { _, err := w.Write(inner); return err })
		}, "compressed more than once"},
		"many bombs": {func(s *scene) []byte {
			one := gpgCompressed(s.T, func(w io.Writer) error {
				_, err := w.Write(gpgPacket(11, make([]byte, 100<<10)))
				return err
			})
			return bytes.Repeat(one, 100)
		}, "longer than 131072 bytes"},
		"signature of version 6 that claims to be 4 GiB": {func(s *scene) []byte {
			return claimed(s.T, key, simplePayload(imageName, s.image.Manifest), []byte{6, 0, 22, 8, 0xff, 0xff, 0xff, 0xf0})
		}, "not followed by signature"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			dir := t.TempDir()
			store(t, dir, s.image.Manifest, c.sign(s))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			want(t, s.verify(signedBy(publicKey(t, key), ""), storeAt(t, "default-docker:\n  lookaside: file://"+dir+"\n")), errDenied, c.part)
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
				t.Errorf("%d bytes of memory", n)
			}
		})
	}
}

// TestRevokedKey: a key's own word counts against what it signed before.
func TestRevokedKey(t *testing.T) {
	t.Parallel()
	key, s, dir := gpgKey(t, nil), newScene(t), t.TempDir()
	store(t, dir, s.image.Manifest, gpgSigned(t, key, simplePayload(imageName, s.image.Manifest), nil))
	stores := storeAt(t, "default-docker:\n  lookaside: file://"+dir+"\n")
	want(t, s.verify(signedBy(publicKey(t, key), ""), stores), nil)
	if err := key.RevokeKey(packet.KeyCompromised, "lost", nil); err != nil {
		t.Fatal(err)
	}
	want(t, s.verify(signedBy(publicKey(t, key), ""), stores), errDenied, "revoked")
}

// TestCompressedSignature is what gpg makes unless it is told otherwise.
func TestCompressedSignature(t *testing.T) {
	t.Parallel()
	key, s, dir := gpgKey(t, nil), newScene(t), t.TempDir()
	store(t, dir, s.image.Manifest, gpgCompressed(t, func(w io.Writer) error {
		_, err := w.Write(gpgSigned(t, key, simplePayload(imageName, s.image.Manifest), nil))
		return err
	}))
	want(t, s.verify(signedBy(publicKey(t, key), ""), storeAt(t, "default-docker:\n  lookaside: file://"+dir+"\n")), nil)
}
