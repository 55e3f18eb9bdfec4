// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// The packets of a signed message (RFC 9580, section 10.3).
const (
	packetSignature = 2
	packetOnePass   = 4
	packetCompress  = 8
	packetLiteral   = 11

	// maxFlat is for the content and for the packets around it.
	maxFlat = 2 * maxSignature
)

// flatten returns the packets of a signed message without compression, which
// may be around all of them once. The library reads them afterwards; it would
// reserve as much memory as a signature claims to need, go through any number
// of decompressed bytes, and not survive a signature without issuer.
func flatten(message []byte) ([]byte, error) {
	var out bytes.Buffer
	if err := flattenTo(&out, message, 1); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func flattenTo(out *bytes.Buffer, message []byte, compressions int) error {
	packets := packet.NewOpaqueReader(bytes.NewReader(message))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a packet breaks off: %w", err)
		}
		switch p.Tag {
		case packetSignature:
			if !hasIssuer(p) {
				continue // nobody's
			}
			err = p.Serialize(out)
		case packetOnePass, packetLiteral:
			err = p.Serialize(out)
		case packetCompress:
			if compressions == 0 {
				return errors.New("compressed more than once")
			}
			var inner []byte
			if inner, err = decompress(p); err == nil {
				err = flattenTo(out, inner, compressions-1)
			}
		default:
			return fmt.Errorf("packets of type %d are not of a signed message", p.Tag)
		}
		if err != nil {
			return err
		}
		if out.Len() > maxFlat {
			return fmt.Errorf("longer than %d bytes", maxFlat)
		}
	}
}

func decompress(p *packet.OpaquePacket) ([]byte, error) {
	parsed, err := p.Parse()
	if err != nil {
		return nil, fmt.Errorf("cannot be decompressed: %w", err)
	}
	c, ok := parsed.(*packet.Compressed)
	if !ok {
		return nil, errors.New("cannot be decompressed")
	}
	b, err := io.ReadAll(io.LimitReader(c.Body, maxFlat+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be decompressed: %w", err)
	case len(b) > maxFlat:
		return nil, fmt.Errorf("decompressed longer than %d bytes", maxFlat)
	}
	return b, nil
}

// hasIssuer reports whether a signature can be read and says by whom it is.
func hasIssuer(p *packet.OpaquePacket) bool {
	if !lengthsFit(p.Contents) {
		return false
	}
	parsed, err := p.Parse()
	s, ok := parsed.(*packet.Signature)
	return err == nil && ok && s.IssuerKeyId != nil
}

// lengthsFit looks at the two lengths in a signature of version 6, which have
// four bytes; those of earlier ones have two.
func lengthsFit(signature []byte) bool {
	if len(signature) == 0 || signature[0] != 6 {
		return true
	}
	rest := signature[min(4, len(signature)):]
	for range 2 { // hashed subpackets, others
		if len(rest) < 4 {
			return false
		}
		n := binary.BigEndian.Uint32(rest)
		if rest = rest[4:]; uint64(n) > uint64(len(rest)) {
			return false
		}
		rest = rest[n:]
	}
	return true
}
