// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package keywrap is the wire form of a wrapped layer key: the annotation
// packet in a layer's descriptor, the wrapping itself, and the ocicrypt
// keyprovider envelope in which the packet travels to the Confidential Data Hub.
//
// It is a contract leaf: publisher and guest import it and it imports only the
// standard library. Everything in a packet comes from the registry and is
// unauthenticated until [Unwrap] succeeds; what Unwrap returns was wrapped by
// somebody who has the key-encryption key (KEK).
package keywrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// ProviderName is the ocicrypt key provider that wraps for the
	// Confidential Data Hub.
	ProviderName = "attestation-agent"
	// Scheme is that provider's ocicrypt scheme.
	Scheme = "provider." + ProviderName
	// AnnotationKey is the layer annotation that holds the packets: base64,
	// joined by commas.
	AnnotationKey = "org.opencontainers.image.enc.keys." + Scheme

	// ProviderKBS is the packet provider whose KEK comes from the Key Broker
	// Service. It is the default, and the only one that can be unwrapped here.
	ProviderKBS = "kbs"

	// A256GCM is the wrap type this package writes and reads.
	A256GCM = "A256GCM"
	// A256CTR is a wrap type other tools may write. It is refused.
	A256CTR = "A256CTR"

	// MaxPacket bounds a packet, in bytes of JSON.
	MaxPacket = 1 << 20

	maxKID        = 1024
	packetVersion = "0.1.0"
)

// The three ways in which a packet can be bad.
var (
	// ErrMalformed means that the bytes are no packet or no envelope.
	ErrMalformed = errors.New("malformed")
	// ErrUnsupported means a well-formed packet that is not unwrapped here:
	// another provider, version or wrap type.
	ErrUnsupported = errors.New("unsupported")
	// ErrIntegrity means that the KEK does not unwrap the packet: one of them
	// is not what it was when the layer was encrypted.
	ErrIntegrity = errors.New("integrity check failed")
)

// Packet is one wrapped layer key. The zero value is not valid; [ParsePacket]
// and [Wrap] make one.
type Packet struct {
	kid         string
	wrappedData []byte
	iv          []byte
	wrapType    string
	provider    string
}

// KID names the KEK, for provider [ProviderKBS] by the URI of a resource. It
// has no control characters, but is not checked further.
func (p Packet) KID() string { return p.kid }

// Provider names who can unwrap the packet.
func (p Packet) Provider() string { return p.provider }

// WrapType is the cipher of the wrapping, empty where the provider knows it.
func (p Packet) WrapType() string { return p.wrapType }

// packetV1 has the members of a version 1 packet, in the order they are written.
type packetV1 struct {
	KID         string `json:"kid"`
	WrappedData []byte `json:"wrapped_data"`
	IV          []byte `json:"iv"`
	WrapType    string `json:"wrap_type"`
}

// packetV2 adds what a version 2 packet may have. Absent and null differ.
type packetV2 struct {
	packetV1
	Version          *string         `json:"version"`
	Provider         *string         `json:"provider"`
	ProviderSettings json.RawMessage `json:"provider_settings"`
	Annotations      json.RawMessage `json:"annotations"`
}

// ParsePacket reads a version 1 or version 2 packet from JSON (the annotation
// after base64). Unknown members are ignored. Errors wrap [ErrMalformed] or
// [ErrUnsupported] and hold no bytes of the wrapped key.
func ParsePacket(b []byte) (Packet, error) {
	p, err := parsePacket(b)
	if err != nil {
		return Packet{}, fmt.Errorf("parse annotation packet: %w", err)
	}
	return p, nil
}

func parsePacket(b []byte) (Packet, error) {
	var wire packetV2
	if err := decode(b, &wire, MaxPacket); err != nil {
		return Packet{}, err
	}
	for name, member := range map[string]json.RawMessage{
		"provider_settings": wire.ProviderSettings, "annotations": wire.Annotations,
	} {
		if member != nil && !isObject(member) {
			return Packet{}, fmt.Errorf("%w: %s is not an object", ErrMalformed, name)
		}
	}
	p := Packet{
		kid: wire.KID, wrappedData: wire.WrappedData, iv: wire.IV, wrapType: wire.WrapType,
		provider: ProviderKBS,
	}
	if wire.Provider != nil {
		p.provider = *wire.Provider
	}
	version := packetVersion
	if wire.Version != nil {
		version = *wire.Version
	}
	if err := p.check(version); err != nil {
		return Packet{}, err
	}
	return p, nil
}

func (p Packet) check(version string) error {
	switch {
	case !plainText(p.kid):
		return fmt.Errorf("%w: kid is missing, longer than %d bytes or not plain text", ErrMalformed, maxKID)
	case !plainText(p.provider):
		return fmt.Errorf("%w: provider is empty, longer than %d bytes or not plain text", ErrMalformed, maxKID)
	case len(p.wrappedData) == 0:
		return fmt.Errorf("%w: no wrapped_data", ErrMalformed)
	case p.provider != ProviderKBS:
		return nil // the rest is the other provider's business
	case version != packetVersion:
		return fmt.Errorf("%w: packet version %.32q, only %s is known", ErrUnsupported, version, packetVersion)
	case len(p.iv) == 0:
		return fmt.Errorf("%w: no iv", ErrMalformed)
	case p.wrapType == "":
		return fmt.Errorf("%w: no wrap_type", ErrMalformed)
	}
	return nil
}

// Marshal writes a version 1 packet: exactly kid, wrapped_data, iv and
// wrap_type. A packet of a provider other than [ProviderKBS] is unsupported.
func (p Packet) Marshal() ([]byte, error) {
	if p.provider != ProviderKBS {
		return nil, fmt.Errorf("marshal annotation packet: %w: provider %.64q has no version 1 form", ErrUnsupported, p.provider)
	}
	if err := p.check(packetVersion); err != nil {
		return nil, fmt.Errorf("marshal annotation packet: %w", err)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // a kid may have a query string
	if err := enc.Encode(packetV1{KID: p.kid, WrappedData: p.wrappedData, IV: p.iv, WrapType: p.wrapType}); err != nil {
		return nil, fmt.Errorf("marshal annotation packet: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// plainText reports whether s may appear in an error or a log as it is.
func plainText(s string) bool {
	return s != "" && len(s) <= maxKID && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func isObject(b []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{"))
}

// decode reads one JSON object. The decoder's own error is not passed on: it
// can hold bytes of the input.
func decode(b []byte, into any, limit int) error {
	if len(b) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(b), limit)
	}
	if !isObject(b) {
		return fmt.Errorf("%w: not a JSON object", ErrMalformed)
	}
	err := json.Unmarshal(b, into)
	var wrongType *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrongType):
		return fmt.Errorf("%w: member %s has the wrong type", ErrMalformed, wrongType.Field)
	case errors.Is(err, ErrMalformed):
		return err
	default:
		return fmt.Errorf("%w: not valid JSON, or a member is not base64", ErrMalformed)
	}
}
