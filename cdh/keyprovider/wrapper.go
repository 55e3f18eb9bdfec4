// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package keyprovider wraps layer keys for the Confidential Data Hub inside the
// publisher's process, as an ocicrypt key wrapper: no key provider daemon and no
// configuration file are needed.
//
// It is for the publisher's side, which holds the key-encryption keys (KEKs). It
// imports ocicrypt, so nothing that runs in the TEE may import it.
//
// ocicrypt keeps its wrappers in a global, unguarded map. Whoever starts the
// process registers one Wrapper, before anything is encrypted or decrypted:
//
//	wrapper := keyprovider.New()
//	ocicrypt.RegisterKeyWrapper(keywrap.Scheme, wrapper)
//
// That also replaces a provider of the same name from OCICRYPT_KEYPROVIDER_CONFIG.
// Each image then adds its KEK with [Wrapper.Add] and asks for it by name, with
// [EncryptTo] in the encryption config.
package keyprovider

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt/config"
	ocikeywrap "github.com/containers/ocicrypt/keywrap"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

var _ ocikeywrap.KeyWrapper = (*Wrapper)(nil)

// GenerateKEK returns a fresh key-encryption key of [keywrap.KEKSize] bytes. The
// caller owns it and clears it.
func GenerateKEK() []byte {
	kek := make([]byte, keywrap.KEKSize)
	rand.Read(kek) // it never fails
	return kek
}

// EncryptTo is the part of an encryption config that has layer keys wrapped with
// the KEK named kid. Join it with other recipients by config.CombineCryptoConfigs.
// The config names the KEK and does not hold it: ocicrypt hands configs on to
// other key providers.
func EncryptTo(kid string) config.CryptoConfig {
	return config.InitEncryption(map[string][][]byte{keywrap.ProviderName: {[]byte(kid)}}, nil)
}

// Wrapper is an ocicrypt key wrapper for scheme [keywrap.Scheme]. It holds KEKs
// by kid, and is safe for concurrent use.
type Wrapper struct {
	mu   sync.RWMutex // guards keks
	keks map[string][]byte
}

// New returns a wrapper that holds no keys.
func New() *Wrapper {
	return &Wrapper{keks: make(map[string][]byte)}
}

// Add makes a copy of kek usable under the name kid, for publishers the URI
// under which the key service has it. It replaces and clears an earlier one.
func (w *Wrapper) Add(kid string, kek []byte) error {
	if len(kek) != keywrap.KEKSize {
		return fmt.Errorf("%w: key %s has %d bytes, a key-encryption key has %d",
			errdefs.ErrInvalidArgument, kid, len(kek), keywrap.KEKSize)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.keks[kid])
	w.keks[kid] = slices.Clone(kek)
	return nil
}

// Remove clears the KEK named kid. Wrapping with it fails from then on.
func (w *Wrapper) Remove(kid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.keks[kid])
	delete(w.keks, kid)
}

// WrapKeys returns the annotation packet (JSON) of a layer's private options. It
// returns nothing where ec does not name a KEK; see [EncryptTo].
func (w *Wrapper) WrapKeys(ec *config.EncryptConfig, optsData []byte) ([]byte, error) {
	kids := ec.Parameters[keywrap.ProviderName]
	switch {
	case len(kids) == 0:
		return nil, nil
	case len(kids) > 1:
		return nil, fmt.Errorf("%w: %d keys named for provider %s; an image has one, encrypt once more to add another",
			errdefs.ErrInvalidArgument, len(kids), keywrap.ProviderName)
	}
	kid := string(kids[0])
	w.mu.RLock()
	defer w.mu.RUnlock()
	kek, ok := w.keks[kid]
	if !ok {
		return nil, unknownKey(kid)
	}
	packet, err := keywrap.Wrap(kek, kid, optsData, rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("wrap with key %s: %w", kid, err)
	}
	return packet.Marshal()
}

// UnwrapKey returns the private options of an annotation packet, if its KEK was
// added.
func (w *Wrapper) UnwrapKey(_ *config.DecryptConfig, annotation []byte) ([]byte, error) {
	packet, err := keywrap.ParsePacket(annotation)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	kek, ok := w.keks[packet.KID()]
	if !ok {
		return nil, unknownKey(packet.KID())
	}
	privateOptions, err := keywrap.Unwrap(kek, packet)
	switch {
	case errors.Is(err, keywrap.ErrIntegrity):
		return nil, fmt.Errorf("key %s (%w): %w", packet.KID(), errdefs.ErrDataLoss, err)
	case err != nil:
		return nil, fmt.Errorf("key %s (%w): %w", packet.KID(), errdefs.ErrNotImplemented, err)
	}
	return privateOptions, nil
}

func unknownKey(kid string) error {
	return fmt.Errorf("%w: no key-encryption key named %q was given", errdefs.ErrNotFound, kid)
}

// GetAnnotationID is the annotation that holds the packets.
func (w *Wrapper) GetAnnotationID() string { return keywrap.AnnotationKey }

// NoPossibleKeys reports whether the wrapper holds no KEK at all.
func (w *Wrapper) NoPossibleKeys(map[string][][]byte) bool {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return len(w.keks) == 0
}

// GetPrivateKeys returns nil: the keys are not in the parameters.
func (w *Wrapper) GetPrivateKeys(map[string][][]byte) [][]byte { return nil }

// GetKeyIdsFromPacket returns nil: kids are not numbers. Use GetRecipients.
func (w *Wrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { return nil, nil }

// GetRecipients returns the kid of each packet of an annotation value.
func (w *Wrapper) GetRecipients(annotation string) ([]string, error) {
	var kids []string
	for encoded := range strings.SplitSeq(annotation, ",") {
		b, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, fmt.Errorf("%w: annotation packet is not base64", errdefs.ErrInvalidArgument)
		}
		p, err := keywrap.ParsePacket(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
		kids = append(kids, p.KID())
	}
	return kids, nil
}

// Format never prints the keys.
func (w *Wrapper) Format(s fmt.State, _ rune) { fmt.Fprint(s, "keyprovider.Wrapper{redacted}") }

// LogValue never logs the keys.
func (w *Wrapper) LogValue() slog.Value { return slog.StringValue("keyprovider.Wrapper{redacted}") }
