// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

const (
	// keysPrefix is what the annotation keys of all wrapped layer keys start with.
	keysPrefix = "org.opencontainers.image.enc.keys."

	// maxAnnotation bounds one annotation value, in bytes. A wrapped key takes
	// about a thousand; the bound leaves room for hundreds of recipients and
	// for extra entries in the options.
	maxAnnotation = 4 << 20

	// maxPackets bounds the packets of one layer. Each is a request to whoever
	// unwraps it, and the registry could send as many as its manifest can hold.
	maxPackets = 1024
)

// A KeyPacket is one wrapped copy of a layer's private options, for one
// recipient. Any one packet of a layer that unwraps is enough.
type KeyPacket struct {
	// Scheme says how Data is wrapped: "jwe", "pkcs7", "pgp", "pkcs11", or
	// "provider." and the name of an ocicrypt key provider.
	Scheme string
	// Data is the packet as the scheme defines it, base64 removed.
	Data []byte
}

// KeyPackets returns the key packets in a layer's annotations, ordered by
// scheme, and within one scheme as the publisher ordered them. Annotations that
// are no key packets are ignored; a layer without any gives an empty list and no
// error. The error wraps [ErrMalformed].
func KeyPackets(annotations map[string]string) ([]KeyPacket, error) {
	var keys []string
	for key, value := range annotations {
		if strings.HasPrefix(key, keysPrefix) && value != "" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)

	var packets []KeyPacket
	for _, key := range keys {
		scheme, value := strings.TrimPrefix(key, keysPrefix), annotations[key]
		if scheme == "" {
			return nil, fmt.Errorf("%w: annotation %q names no key wrapping scheme", ErrMalformed, key)
		}
		if len(value) > maxAnnotation {
			return nil, fmt.Errorf("%w: annotation %.200q is longer than %d bytes", ErrMalformed, key, maxAnnotation)
		}
		if len(packets)+strings.Count(value, ",") >= maxPackets {
			return nil, fmt.Errorf("%w: the layer has more than %d key packets", ErrMalformed, maxPackets)
		}
		for part := range strings.SplitSeq(value, ",") {
			data, err := base64.StdEncoding.DecodeString(part)
			if err != nil || len(data) == 0 {
				return nil, fmt.Errorf("%w: annotation %.200q is not a list of base64 strings", ErrMalformed, key)
			}
			packets = append(packets, KeyPacket{Scheme: scheme, Data: data})
		}
	}
	return packets, nil
}
