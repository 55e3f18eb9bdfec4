// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package keywrap_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

// sampleKEK is the published key of guest-components' sample key provider.
func sampleKEK() []byte {
	return []byte{
		217, 155, 119, 5, 176, 186, 122, 22, 130, 149, 179, 163, 54, 114, 112, 176,
		221, 155, 55, 27, 245, 20, 202, 139, 155, 167, 240, 163, 55, 17, 218, 234,
	}
}

// vector reads a file of the shared test vectors.
func vector(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "vectors", "ocicrypt", name))
	if err != nil {
		if strings.Contains(os.Getenv("REQUIRE"), "vectors") {
			t.Fatal(err)
		}
		t.Skipf("no test vectors: %v", err)
	}
	return b
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, kid string
		kek       []byte // nil where it was not published
	}{
		{"annotation-packet-v1.json", "kbs:///kbs:///default/key/1", nil},
		{"sample_kbc_annotation.json", "kbs:///default/key/1", sampleKEK()},
	} {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			golden := vector(t, tc.file)
			p, err := keywrap.ParsePacket(golden)
			if err != nil {
				t.Fatal(err)
			}
			if p.KID() != tc.kid || p.Provider() != keywrap.ProviderKBS || p.WrapType() != keywrap.A256GCM {
				t.Errorf("got kid %q, provider %q, wrap type %q", p.KID(), p.Provider(), p.WrapType())
			}
			written, err := p.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			var want bytes.Buffer
			if err := json.Compact(&want, golden); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.String(), string(written)); diff != "" {
				t.Errorf("written packet differs from the golden one (-want +got):\n%s", diff)
			}
			if tc.kek == nil {
				return
			}
			privateOptions, err := keywrap.Unwrap(tc.kek, p)
			if err != nil {
				t.Fatal(err)
			}
			var options struct {
				SymKey []byte `json:"symkey"`
			}
			if err := json.Unmarshal(privateOptions, &options); err != nil || len(options.SymKey) != 32 {
				t.Errorf("unwrapped options hold a key of %d bytes (%v)", len(options.SymKey), err)
			}
		})
	}
}

func TestParsePacket(t *testing.T) {
	t.Parallel()
	const v1 = `"kid":"kbs:///a/b/c","wrapped_data":"AAAAAAAAAAAAAAAAAAAAAA==","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"`
	for _, tc := range []struct {
		name, packet string
		want         error
		provider     string
	}{
		{"v1", `{` + v1 + `}`, nil, "kbs"},
		{"v2 for kbs", `{"version":"0.1.0","provider":"kbs","provider_settings":{},"annotations":{"x":1},` + v1 + `}`, nil, "kbs"},
		{"v2 for a cloud", `{"version":"0.1.0","provider":"aliyun","kid":"k","wrapped_data":"AA=="}`, nil, "aliyun"},
		{"unknown members", `{"more":[1],` + v1 + `}`, nil, "kbs"},
		{"white space", " \n{" + v1 + "}\n", nil, "kbs"},
		{"other case of kbs", `{"provider":"KBS",` + v1 + `}`, nil, "KBS"},
		{"other version", `{"version":"0.2.0",` + v1 + `}`, keywrap.ErrUnsupported, ""},
		{"null settings", `{"provider_settings":null,` + v1 + `}`, keywrap.ErrMalformed, ""},
		{"settings not an object", `{"annotations":[],` + v1 + `}`, keywrap.ErrMalformed, ""},
		{"no kid", `{"wrapped_data":"AA==","iv":"AA==","wrap_type":"A256GCM"}`, keywrap.ErrMalformed, ""},
		{"control character in kid", `{"kid":"kbs:///a\n/b","wrapped_data":"AA==","iv":"AA==","wrap_type":"A256GCM"}`, keywrap.ErrMalformed, ""},
		{"endless kid", `{"kid":"` + strings.Repeat("k", 2000) + `","wrapped_data":"AA=="}`, keywrap.ErrMalformed, ""},
		{"no wrapped data", `{"kid":"k","iv":"AA==","wrap_type":"A256GCM"}`, keywrap.ErrMalformed, ""},
		{"no iv", `{"kid":"k","wrapped_data":"AA==","wrap_type":"A256GCM"}`, keywrap.ErrMalformed, ""},
		{"no wrap type", `{"kid":"k","wrapped_data":"AA==","iv":"AA=="}`, keywrap.ErrMalformed, ""},
		{"iv not base64", `{"kid":"k","wrapped_data":"AA==","iv":"!","wrap_type":"A256GCM"}`, keywrap.ErrMalformed, ""},
		{"kid a number", `{"kid":1}`, keywrap.ErrMalformed, ""},
		{"not an object", `[1]`, keywrap.ErrMalformed, ""},
		{"empty", ``, keywrap.ErrMalformed, ""},
		{"null", `null`, keywrap.ErrMalformed, ""},
		{"two packets", `{` + v1 + `}{` + v1 + `}`, keywrap.ErrMalformed, ""},
		{"too long", `{"x":"` + strings.Repeat("x", keywrap.MaxPacket) + `",` + v1 + `}`, keywrap.ErrMalformed, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, err := keywrap.ParsePacket([]byte(tc.packet))
			if !errors.Is(err, tc.want) || (err != nil) != (tc.want != nil) {
				t.Fatalf("got error %v, want %v", err, tc.want)
			}
			if p.Provider() != tc.provider {
				t.Errorf("got provider %q, want %q", p.Provider(), tc.provider)
			}
		})
	}
}

func TestMarshalOtherProvider(t *testing.T) {
	t.Parallel()
	p, err := keywrap.ParsePacket([]byte(`{"provider":"aliyun","kid":"k","wrapped_data":"AA=="}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Marshal(); !errors.Is(err, keywrap.ErrUnsupported) {
		t.Errorf("got error %v, want unsupported", err)
	}
	if _, err := (keywrap.Packet{}).Marshal(); err == nil {
		t.Error("the zero packet was written")
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add([]byte(`{"kid":"kbs:///default/key/1","wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`))
	f.Add([]byte(`{"version":"0.1.0","provider":"aliyun","kid":"k","wrapped_data":"AA==","annotations":{}}`))
	f.Add([]byte(`{"kid":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := keywrap.ParsePacket(b)
		if err != nil {
			return
		}
		if p.KID() == "" || strings.ContainsAny(p.KID(), "\r\n\x00") {
			t.Errorf("kid %q was let through", p.KID())
		}
		if p.Provider() != keywrap.ProviderKBS {
			return
		}
		written, err := p.Marshal()
		if err != nil {
			t.Fatalf("a parsed packet is not written: %v", err)
		}
		again, err := keywrap.ParsePacket(written)
		if err != nil {
			t.Fatalf("a written packet is not parsed: %v", err)
		}
		rewritten, err := again.Marshal()
		if err != nil || !bytes.Equal(written, rewritten) {
			t.Errorf("second writing differs: %v", err)
		}
	})
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
