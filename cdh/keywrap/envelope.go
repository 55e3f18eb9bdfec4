// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keywrap

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
)

// maxEnvelope bounds an envelope: a packet in base64, or as an array of numbers.
const maxEnvelope = 4 * MaxPacket

// WrapRequest asks a key provider to wrap one layer's private options.
type WrapRequest struct {
	// Parameters are what the user named behind provider:attestation-agent:.
	Parameters []string
	// PrivateOptions is secret; the caller clears it.
	PrivateOptions []byte
}

// numbers is bytes that clients write as an array of integers or as base64.
type numbers []byte

// UnmarshalJSON reads an array of integers or a base64 string.
func (n *numbers) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, (*[]byte)(n)); err != nil {
		return fmt.Errorf("%w: expected base64 or an array of bytes", ErrMalformed)
	}
	return nil
}

// ParseUnwrapRequest returns the packet (JSON) out of a keyunwrap request. The
// operation, the decryption config and keywrapparams are not looked at: clients
// differ in them. The packet itself is not parsed.
func ParseUnwrapRequest(b []byte) ([]byte, error) {
	var e struct {
		Params struct {
			Annotation numbers `json:"annotation"`
		} `json:"keyunwrapparams"`
	}
	if err := decode(b, &e, maxEnvelope); err != nil {
		return nil, fmt.Errorf("parse unwrap request: %w", err)
	}
	if len(e.Params.Annotation) == 0 {
		return nil, fmt.Errorf("parse unwrap request: %w: no keyunwrapparams.annotation", ErrMalformed)
	}
	return e.Params.Annotation, nil
}

// MarshalUnwrapRequest writes the keyunwrap request for a packet (JSON), with
// the members that strict readers of the protocol want to see.
func MarshalUnwrapRequest(packet []byte) []byte {
	return fmt.Appendf(nil, `{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},`+
		`"keyunwrapparams":{"dc":{"Parameters":{}},"annotation":"%s"}}`, base64.StdEncoding.EncodeToString(packet))
}

// MarshalUnwrapResponse writes the answer to a keyunwrap request. The result
// holds the private options and is as secret as they are.
func MarshalUnwrapResponse(privateOptions []byte) []byte {
	return marshalResult(`{"keyunwrapresults":{"optsdata":[`, privateOptions)
}

// ParseUnwrapResponse returns the private options out of an answer.
func ParseUnwrapResponse(b []byte) ([]byte, error) {
	var e struct {
		Results struct {
			OptsData numbers `json:"optsdata"`
		} `json:"keyunwrapresults"`
	}
	if err := decode(b, &e, maxEnvelope); err != nil {
		return nil, fmt.Errorf("parse unwrap response: %w", err)
	}
	if len(e.Results.OptsData) == 0 {
		return nil, fmt.Errorf("parse unwrap response: %w: no keyunwrapresults.optsdata", ErrMalformed)
	}
	return e.Results.OptsData, nil
}

// ParseWrapRequest reads a keywrap request. The private options may be base64
// or an array of integers (ocicrypt), or the JSON text itself (ocicrypt-rs).
func ParseWrapRequest(b []byte) (WrapRequest, error) {
	var e struct {
		Params struct {
			EC struct {
				Parameters map[string][][]byte
			} `json:"ec"`
			OptsData json.RawMessage `json:"optsdata"`
		} `json:"keywrapparams"`
	}
	if err := decode(b, &e, maxEnvelope); err != nil {
		return WrapRequest{}, fmt.Errorf("parse wrap request: %w", err)
	}
	privateOptions, err := parseOptsData(e.Params.OptsData)
	if err != nil {
		return WrapRequest{}, fmt.Errorf("parse wrap request: keywrapparams.optsdata: %w", err)
	}
	req := WrapRequest{PrivateOptions: privateOptions}
	for _, p := range e.Params.EC.Parameters[ProviderName] {
		req.Parameters = append(req.Parameters, string(p))
	}
	return req, nil
}

// MarshalWrapResponse writes the answer to a keywrap request: a packet (JSON).
func MarshalWrapResponse(packet []byte) []byte {
	return marshalResult(`{"keywrapresults":{"annotation":[`, packet)
}

// marshalResult writes b behind start as an array of integers, the only form
// that every client of the protocol reads.
func marshalResult(start string, b []byte) []byte {
	const perByte, end = len("255,"), "]}}"
	out := append(make([]byte, 0, len(start)+perByte*len(b)+len(end)), start...)
	for i, v := range b {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(v), 10)
	}
	return append(out, end...)
}

func parseOptsData(raw json.RawMessage) ([]byte, error) {
	if isObject(raw) {
		return raw, nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err == nil {
		if isObject([]byte(text)) {
			return []byte(text), nil
		}
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(b) == 0 {
			return nil, fmt.Errorf("%w: expected the private options in base64 or as JSON", ErrMalformed)
		}
		return b, nil
	}
	var b numbers
	if err := b.UnmarshalJSON(raw); err != nil || len(b) == 0 {
		return nil, fmt.Errorf("%w: expected the private options in base64 or as JSON", ErrMalformed)
	}
	return b, nil
}
