// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keywrap_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

const privateOptions = `{"symkey":"c2VjcmV0","digest":"","cipheroptions":{"nonce":"bm9uY2U="}}`

func wrap(t *testing.T) keywrap.Packet {
	t.Helper()
	p, err := keywrap.Wrap(sampleKEK(), "kbs:///default/key/1?v=1&x=2", []byte(privateOptions), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWrapUnwrap(t *testing.T) {
	t.Parallel()
	b, err := wrap(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte("v=1&x=2")) {
		t.Errorf("the kid was escaped: %s", b)
	}
	p, err := keywrap.ParsePacket(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := keywrap.Unwrap(sampleKEK(), p)
	if err != nil || string(got) != privateOptions {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
	second, err := wrap(t).Marshal()
	if err != nil || bytes.Equal(b, second) {
		t.Errorf("two wrappings are equal: the IV is not fresh (%v)", err)
	}
}

func TestWrapRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, kid string
		kek       []byte
		options   int
	}{
		{"short key", "kbs:///a/b/c", make([]byte, 16), 10},
		{"no key", "kbs:///a/b/c", nil, 10},
		{"no kid", "", make([]byte, 32), 10},
		{"endless options", "kbs:///a/b/c", make([]byte, 32), keywrap.MaxPacket},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if _, err := keywrap.Wrap(tc.kek, tc.kid, make([]byte, tc.options), nil); err == nil {
				t.Error("it was wrapped")
			}
		})
	}
	if _, err := keywrap.Wrap(make([]byte, 32), "k", nil, iotest.ErrReader(errors.New("no entropy"))); err == nil {
		t.Error("it was wrapped without random bytes")
	}
}

// TestMutation changes every member of a packet; nothing but the original opens.
func TestMutation(t *testing.T) {
	t.Parallel()
	b, err := wrap(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var wire struct {
		WrappedData []byte `json:"wrapped_data"`
		IV          []byte `json:"iv"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		t.Fatal(err)
	}
	check := func(what string, wrappedData, iv []byte) {
		t.Helper()
		p, err := keywrap.ParsePacket([]byte(`{"kid":"k","wrap_type":"A256GCM","wrapped_data":"` +
			encode(wrappedData) + `","iv":"` + encode(iv) + `"}`))
		if err != nil {
			return
		}
		if _, err := keywrap.Unwrap(sampleKEK(), p); err == nil {
			t.Errorf("%s: it was unwrapped", what)
		}
	}
	for i := range wire.WrappedData {
		flipped := bytes.Clone(wire.WrappedData)
		flipped[i] ^= 1
		check("flip", flipped, wire.IV)
		check("truncate", wire.WrappedData[:i], wire.IV)
	}
	check("extend", append(bytes.Clone(wire.WrappedData), 0), wire.IV)
	for i := range wire.IV {
		flipped := bytes.Clone(wire.IV)
		flipped[i] ^= 0x80
		check("flip iv", wire.WrappedData, flipped)
		check("truncate iv", wire.WrappedData, wire.IV[:i])
	}
	check("extend iv", wire.WrappedData, append(bytes.Clone(wire.IV), 0, 0, 0, 2))
}

func TestUnwrapRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, packet, text string
		kek                []byte
		want               error
	}{
		{
			"counter mode", `{"kid":"k","wrapped_data":"AA==","iv":"AAAAAAAAAAAAAAAAAAAAAA==","wrap_type":"A256CTR"}`,
			"no integrity", sampleKEK(), keywrap.ErrUnsupported,
		},
		{
			"unknown wrap type", `{"kid":"k","wrapped_data":"AA==","iv":"AA==","wrap_type":"ROT13"}`,
			"ROT13", sampleKEK(), keywrap.ErrUnsupported,
		},
		{
			"other provider", `{"kid":"k","wrapped_data":"AA==","provider":"aliyun"}`,
			"aliyun", sampleKEK(), keywrap.ErrUnsupported,
		},
		{
			"shorter than a tag", `{"kid":"k","wrapped_data":"AA==","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`,
			"at least 16", sampleKEK(), keywrap.ErrMalformed,
		},
		{
			"wrong key", `{"kid":"k","wrapped_data":"AAAAAAAAAAAAAAAAAAAAAAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`,
			"another key", sampleKEK(), keywrap.ErrIntegrity,
		},
		{
			"key in hex", `{"kid":"k","wrapped_data":"AAAAAAAAAAAAAAAAAAAAAAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`,
			"64 bytes", make([]byte, 64), keywrap.ErrIntegrity,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := keywrap.ParsePacket([]byte(tc.packet))
			if err != nil {
				t.Fatal(err)
			}
			_, err = keywrap.Unwrap(tc.kek, p)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got error %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
}
