// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keywrap

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"io"
)

// KEKSize is the size of a key-encryption key in bytes.
const KEKSize = 32

const (
	gcmIVSize  = 12
	gcmTagSize = 16

	// maxPrivateOptions leaves room in MaxPacket for base64 and the other members.
	maxPrivateOptions = MaxPacket / 2
)

// Wrap wraps a layer's private options with the KEK named kid, using AES-256-GCM
// with a fresh IV from random (nil means crypto/rand). It keeps neither kek nor
// privateOptions. One KEK may wrap many layers: the IVs are random, so keep it
// well below 2^32 of them.
func Wrap(kek []byte, kid string, privateOptions []byte, random io.Reader) (Packet, error) {
	aead, err := newAEAD(kek)
	if err != nil {
		return Packet{}, fmt.Errorf("wrap layer key: %w", err)
	}
	if len(privateOptions) > maxPrivateOptions {
		return Packet{}, fmt.Errorf("wrap layer key: %w: private options have %d bytes, at most %d are allowed",
			ErrUnsupported, len(privateOptions), maxPrivateOptions)
	}
	if random == nil {
		random = rand.Reader
	}
	iv := make([]byte, gcmIVSize)
	if _, err := io.ReadFull(random, iv); err != nil {
		return Packet{}, fmt.Errorf("wrap layer key: read random bytes: %w", err)
	}
	p := Packet{
		kid: kid, wrappedData: aead.Seal(nil, iv, privateOptions, nil), iv: iv,
		wrapType: A256GCM, provider: ProviderKBS,
	}
	if err := p.check(packetVersion); err != nil {
		return Packet{}, fmt.Errorf("wrap layer key: %w", err)
	}
	return p, nil
}

// Unwrap returns the private options that p holds. The caller owns them and
// clears them. Errors wrap [ErrUnsupported] where the packet is not for this
// function, [ErrMalformed] where its parts have impossible sizes, and
// [ErrIntegrity] where this KEK does not open it.
//
// A256CTR is refused: it has no integrity, and since the wrap type itself comes
// from the registry, accepting it would let the registry turn a genuine A256GCM
// packet into one whose content it chooses.
func Unwrap(kek []byte, p Packet) ([]byte, error) {
	privateOptions, err := unwrap(kek, p)
	if err != nil {
		return nil, fmt.Errorf("unwrap layer key: %w", err)
	}
	return privateOptions, nil
}

func unwrap(kek []byte, p Packet) ([]byte, error) {
	if err := p.Supported(); err != nil {
		return nil, err
	}
	aead, err := newAEAD(kek)
	if err != nil {
		return nil, err
	}
	privateOptions, err := aead.Open(nil, p.iv, p.wrappedData, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the packet was wrapped with another key or was changed", ErrIntegrity)
	}
	return privateOptions, nil
}

// Supported says whether [Unwrap] can open p, given the right KEK. A nil error
// means yes; others wrap [ErrUnsupported] or [ErrMalformed]. Ask it before the
// KEK is fetched.
func (p Packet) Supported() error {
	switch {
	case p.provider != ProviderKBS:
		return fmt.Errorf("%w: provider %.64q; encrypt the image for provider %s", ErrUnsupported, p.provider, ProviderKBS)
	case p.wrapType == A256CTR:
		return fmt.Errorf("%w: wrap type %s has no integrity and is refused; encrypt the image again with %s",
			ErrUnsupported, A256CTR, A256GCM)
	case p.wrapType != A256GCM:
		return fmt.Errorf("%w: wrap type %.32q; encrypt the image again with %s", ErrUnsupported, p.wrapType, A256GCM)
	case len(p.iv) != gcmIVSize:
		return fmt.Errorf("%w: iv has %d bytes, %s needs %d", ErrMalformed, len(p.iv), A256GCM, gcmIVSize)
	case len(p.wrappedData) < gcmTagSize:
		return fmt.Errorf("%w: wrapped_data has %d bytes, %s needs at least %d",
			ErrMalformed, len(p.wrappedData), A256GCM, gcmTagSize)
	}
	return nil
}

func newAEAD(kek []byte) (cipher.AEAD, error) {
	if len(kek) != KEKSize {
		return nil, fmt.Errorf("%w: the key-encryption key has %d bytes, %s needs %d raw bytes",
			ErrIntegrity, len(kek), A256GCM, KEKSize)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("set up AES: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("set up GCM: %w", err)
	}
	return aead, nil
}
