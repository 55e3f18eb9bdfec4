// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"hash"
)

// A pass takes the ciphertext of one layer through digest, MAC and cipher, and
// the plaintext through its own digest where one was recorded. There are two,
// with the same results: portable, which runs everywhere and is the oracle, and
// fused, for amd64 with SHA instructions. (On arm64 portable has them too: the
// standard library uses them, for one sum after another.)
type pass interface {
	// open decrypts the next bytes in place. It does not allocate.
	open(p []byte)
	// sums are those of the bytes so far.
	sums() sums
}

// sums of a layer; plain is zero where the pass was made without it.
type sums struct {
	digest, mac, plain [sha256.Size]byte
}

// newPassFunc makes a pass with a key stream and a copy of the layer key; plain
// asks for the digest of the plaintext.
type newPassFunc func(stream cipher.Stream, layerKey []byte, plain bool) pass

// subBlock is how many bytes go through digest, MAC and cipher before the next
// ones do, so that all find them in the first-level cache.
const subBlock = 16 << 10

// portable is the pass made of the standard library's parts, one after another.
type portable struct {
	stream      cipher.Stream
	digest, mac hash.Hash // of the ciphertext
	plain       hash.Hash // of the plaintext; nil where it is not wanted
}

func newPortable(stream cipher.Stream, layerKey []byte, plain bool) pass {
	p := &portable{stream: stream, digest: sha256.New(), mac: hmac.New(sha256.New, layerKey)}
	if plain {
		p.plain = sha256.New()
	}
	return p
}

func (p *portable) open(b []byte) {
	for len(b) > 0 {
		block := b[:min(subBlock, len(b))]
		p.digest.Write(block)
		p.mac.Write(block)
		p.stream.XORKeyStream(block, block)
		if p.plain != nil {
			p.plain.Write(block)
		}
		b = b[len(block):]
	}
}

func (p *portable) sums() sums {
	var s sums
	p.digest.Sum(s.digest[:0])
	p.mac.Sum(s.mac[:0])
	if p.plain != nil {
		p.plain.Sum(s.plain[:0])
	}
	return s
}
