// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// changes are what one who holds the ciphertext can do to it.
func changes() map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte {
			b[len(b)/2] ^= 1
			return b
		},
		"truncated": func(b []byte) []byte { return b[:len(b)-16] },
		"extended":  func(b []byte) []byte { return append(b, bytes.Repeat([]byte{7}, 16)...) },
		"reordered": func(b []byte) []byte {
			first, second := bytes.Clone(b[:512]), bytes.Clone(b[512:1024])
			copy(b, second)
			copy(b[512:], first)
			return b
		},
	}
}

// TestTamperedCiphertext: the registry's owner changes a layer and makes a
// manifest that fits it. Digests hold; the MAC must not.
func TestTamperedCiphertext(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	for name, change := range changes() {
		t.Run(name, func(t *testing.T) {
			p := m.publish(t, name, testbed.ImageOptions{})
			p.pushChanged(t, change)
			m.refuses(t, p, "code = DataLoss", "layer sha256:", "MAC does not match", "again")
			p.pushOriginal(t)
			m.runs(t, p)
		})
	}
}

// TestTamperedTransfer: the registry, or one between it and the guest, answers
// with other bytes than the manifest says.
func TestTamperedTransfer(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	for name, change := range changes() {
		t.Run(name, func(t *testing.T) {
			p := m.publish(t, name, testbed.ImageOptions{})
			m.Proxy.Set(p.top().Digest.String(), testbed.Fault{Body: change})
			m.refuses(t, p, "code = DataLoss", p.top().Digest.String(), "again")
			m.Proxy.Clear()
			m.runs(t, p)
		})
	}
}

func TestWrongDiffIDAndWrongKey(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	t.Run("diff id", func(t *testing.T) {
		p := m.publish(t, "diffid", testbed.ImageOptions{})
		p.pushOtherDiffID(t)
		m.refuses(t, p, "code = DataLoss", "diff id", "push the image again")
		p.pushOriginal(t)
		m.runs(t, p)
	})
	t.Run("key", func(t *testing.T) {
		p := m.publish(t, "wrongkey", testbed.ImageOptions{})
		other := make([]byte, len(p.kek))
		if _, err := rand.Read(other); err != nil {
			t.Fatal(err)
		}
		m.setKey(t, p, other)
		m.refuses(t, p, "code = DataLoss", p.key.URI().String(), "does not unwrap", "encrypt the image again")
		m.setKey(t, p, p.kek)
		m.runs(t, p)
	})
}
