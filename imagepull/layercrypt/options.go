// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

const (
	// PublicOptionsKey is the annotation that holds the public options, as
	// base64 of their JSON.
	PublicOptionsKey = "org.opencontainers.image.enc.pubopts"

	// Cipher is the one cipher of the format.
	Cipher = "AES_256_CTR_HMAC_SHA256"

	nonceOption  = "nonce"
	keySize      = 32
	sha256Prefix = "sha256:"

	redacted = "layercrypt.PrivateOptions{redacted}"
)

// PublicOptions travel in the clear, beside the ciphertext. Nothing vouches for
// them before [Reader.Verify] does.
type PublicOptions struct {
	// Cipher is the name of the cipher; the only one known is [Cipher].
	Cipher string `json:"cipher"`
	// HMAC is the HMAC-SHA256 of the ciphertext.
	HMAC []byte `json:"hmac"`
	// CipherOptions are further values by name. A nonce among them is an error.
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// PrivateOptions are what a key packet wraps. They hold the layer key: they
// print, log and marshal as a fixed text, and their owner calls Clear when done.
type PrivateOptions struct {
	// SymKey is the layer key, 32 bytes, for the cipher and the MAC alike.
	SymKey []byte `json:"symkey"`
	// Digest is the digest of the layer before encryption ("sha256:..."), or
	// empty where the publisher recorded none.
	Digest string `json:"digest"`
	// CipherOptions are further values by name; "nonce" has 16 bytes.
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// ParsePublicOptions reads public options from their JSON. Unknown members are
// ignored. The error wraps [ErrMalformed], or [ErrUnsupported] for a cipher
// that is not [Cipher].
func ParsePublicOptions(b []byte) (PublicOptions, error) {
	var pub PublicOptions
	if len(b) > maxAnnotation {
		return PublicOptions{}, fmt.Errorf("%w: public options are longer than %d bytes", ErrMalformed, maxAnnotation)
	}
	if json.Unmarshal(b, &pub) != nil {
		// The cause is left out: it can quote megabytes of the document.
		return PublicOptions{}, fmt.Errorf("%w: public options are not the expected JSON", ErrMalformed)
	}
	if err := pub.check(); err != nil {
		return PublicOptions{}, err
	}
	return pub, nil
}

// PublicOptionsOf reads the public options in a layer's annotations. The error
// is as for [ParsePublicOptions]; an absent annotation is malformed too.
func PublicOptionsOf(annotations map[string]string) (PublicOptions, error) {
	value := annotations[PublicOptionsKey]
	if value == "" {
		return PublicOptions{}, fmt.Errorf("%w: the layer has no annotation %s", ErrMalformed, PublicOptionsKey)
	}
	b, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return PublicOptions{}, fmt.Errorf("%w: annotation %s: %w", ErrMalformed, PublicOptionsKey, err)
	}
	return ParsePublicOptions(b)
}

func (pub PublicOptions) check() error {
	if pub.Cipher != Cipher {
		return fmt.Errorf("%w: cipher %.64q; this reader knows %s", ErrUnsupported, pub.Cipher, Cipher)
	}
	if len(pub.HMAC) != sha256.Size {
		return fmt.Errorf("%w: public options: the MAC has %d bytes, want %d", ErrMalformed, len(pub.HMAC), sha256.Size)
	}
	if _, found := pub.CipherOptions[nonceOption]; found {
		return fmt.Errorf("%w: public options carry a nonce; only the wrapped options may", ErrMalformed)
	}
	return nil
}

// ParsePrivateOptions reads private options from their JSON. Unknown members
// are ignored. The result shares no memory with b, which the caller clears. The
// error wraps [ErrMalformed] or [ErrUnsupported] and quotes nothing of b.
func ParsePrivateOptions(b []byte) (PrivateOptions, error) {
	var priv PrivateOptions
	if len(b) > maxAnnotation {
		return PrivateOptions{}, fmt.Errorf("%w: private options are longer than %d bytes", ErrMalformed, maxAnnotation)
	}
	if json.Unmarshal(b, &priv) != nil {
		// The cause is left out: it can quote the document, which holds the key.
		priv.Clear()
		return PrivateOptions{}, fmt.Errorf("%w: private options are not the expected JSON", ErrMalformed)
	}
	if err := priv.check(); err != nil {
		priv.Clear()
		return PrivateOptions{}, err
	}
	return priv, nil
}

func (priv PrivateOptions) check() error {
	if len(priv.SymKey) != keySize {
		return fmt.Errorf("%w: private options: the layer key has %d bytes, want %d", ErrMalformed, len(priv.SymKey), keySize)
	}
	if n := len(priv.CipherOptions[nonceOption]); n != aes.BlockSize {
		return fmt.Errorf("%w: private options: the nonce has %d bytes, want %d", ErrMalformed, n, aes.BlockSize)
	}
	if priv.Digest == "" {
		return nil
	}
	encoded, found := strings.CutPrefix(priv.Digest, sha256Prefix)
	if !found {
		return fmt.Errorf("%w: private options: the digest is not a %s one", ErrUnsupported, strings.TrimSuffix(sha256Prefix, ":"))
	}
	if b, err := hex.DecodeString(encoded); err != nil || len(b) != sha256.Size || encoded != strings.ToLower(encoded) {
		return fmt.Errorf("%w: private options: the digest is not 64 lower case hexadecimal digits", ErrMalformed)
	}
	return nil
}

// Clear overwrites the key and all cipher options. The options are unusable
// afterwards; a [Reader] made from them before goes on working.
func (priv *PrivateOptions) Clear() {
	clear(priv.SymKey)
	for _, value := range priv.CipherOptions {
		clear(value)
	}
	*priv = PrivateOptions{}
}

// String returns a fixed text in place of the key.
func (PrivateOptions) String() string { return redacted }

// Format writes a fixed text in place of the key, for every verb.
func (PrivateOptions) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a fixed text in place of the key.
func (PrivateOptions) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns a fixed text in place of the key: only a key wrap may
// write private options out.
func (PrivateOptions) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
