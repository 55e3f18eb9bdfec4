// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files in testdata were written by ocicrypt 1.3.2 for the key that
// private.json holds.
func TestGolden(t *testing.T) {
	t.Parallel()
	pub, err := layercrypt.ParsePublicOptions(golden(t, "public.json"))
	if err != nil {
		t.Fatal(err)
	}
	priv, err := layercrypt.ParsePrivateOptions(golden(t, "private.json"))
	if err != nil {
		t.Fatal(err)
	}
	s := sealed{plain: golden(t, "plain.txt"), blob: golden(t, "blob.bin"), pub: pub, priv: priv}
	buf := make([]byte, len(s.blob)+1)
	d := s.reader(t, bytes.NewReader(s.blob))
	n, _ := d.Read(buf)
	if diff := cmp.Diff(string(s.plain), string(buf[:n])); diff != "" {
		t.Error(diff)
	}
	if err := d.Verify(s.expect()); err != nil {
		t.Error(err)
	}
}

func TestParsePublicOptions(t *testing.T) {
	t.Parallel()
	mac := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"good":              {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `","cipheroptions":{}}`, nil},
		"options absent":    {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `"}`, nil},
		"unknown entries":   {`{"x":1,"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `","cipheroptions":{"lazy.v1":"AAAA"}}`, nil},
		"nonce":             {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`, layercrypt.ErrMalformed},
		"empty nonce":       {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `","cipheroptions":{"nonce":""}}`, layercrypt.ErrMalformed},
		"nonce twice given": {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `","cipheroptions":{"nonce":""},"CipherOptions":{}}`, layercrypt.ErrMalformed},
		"other cipher":      {`{"cipher":"AES_128_CTR","hmac":"` + mac + `"}`, layercrypt.ErrUnsupported},
		"no cipher":         {`{"hmac":"` + mac + `"}`, layercrypt.ErrUnsupported},
		"short mac":         {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA"}`, layercrypt.ErrMalformed},
		"no mac":            {`{"cipher":"AES_256_CTR_HMAC_SHA256"}`, layercrypt.ErrMalformed},
		"not JSON":          {`{`, layercrypt.ErrMalformed},
		"trailing":          {`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + mac + `"}{}`, layercrypt.ErrMalformed},
		"null":              {`null`, layercrypt.ErrUnsupported},
		"too long":          {strings.Repeat(" ", 5<<20), layercrypt.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := layercrypt.ParsePublicOptions([]byte(tc.in)); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
		})
	}
}

func TestPublicOptionsOf(t *testing.T) {
	t.Parallel()
	good := base64.StdEncoding.EncodeToString(golden(t, "public.json"))
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        error
	}{
		"good":       {map[string]string{layercrypt.PublicOptionsKey: good}, nil},
		"absent":     {nil, layercrypt.ErrMalformed},
		"not base64": {map[string]string{layercrypt.PublicOptionsKey: "{}"}, layercrypt.ErrMalformed},
	} {
		if _, err := layercrypt.PublicOptionsOf(tc.annotations); !errors.Is(err, tc.want) {
			t.Errorf("%s: error is %v, want %v", name, err, tc.want)
		}
	}
}

func TestParsePrivateOptions(t *testing.T) {
	t.Parallel()
	const (
		key   = `"symkey":"QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI="`
		nonce = `"cipheroptions":{"nonce":"QkJCQkJCQkJCQkJCQkJCQg=="}`
		hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	)
	for name, tc := range map[string]struct {
		in   string
		want error
	}{
		"good":              {`{` + key + `,"digest":"sha256:` + hex64 + `",` + nonce + `}`, nil},
		"no digest":         {`{` + key + `,` + nonce + `}`, nil},
		"empty digest":      {`{` + key + `,"digest":"",` + nonce + `}`, nil},
		"unknown entries":   {`{"x":[],` + key + `,"cipheroptions":{"lazy.v1":"AAAA","nonce":"QkJCQkJCQkJCQkJCQkJCQg=="}}`, nil},
		"key as integers":   {`{"symkey":[` + strings.Repeat("66,", 31) + `66],` + nonce + `}`, nil},
		"short key":         {`{"symkey":"QkJC",` + nonce + `}`, layercrypt.ErrMalformed},
		"no key":            {`{` + nonce + `}`, layercrypt.ErrMalformed},
		"short nonce":       {`{` + key + `,"cipheroptions":{"nonce":"QkJC"}}`, layercrypt.ErrMalformed},
		"no nonce":          {`{` + key + `}`, layercrypt.ErrMalformed},
		"other digest":      {`{` + key + `,"digest":"sha512:` + hex64 + hex64 + `",` + nonce + `}`, layercrypt.ErrUnsupported},
		"short digest":      {`{` + key + `,"digest":"sha256:00",` + nonce + `}`, layercrypt.ErrMalformed},
		"upper case digest": {`{` + key + `,"digest":"sha256:` + strings.ToUpper(hex64) + `",` + nonce + `}`, layercrypt.ErrMalformed},
		"not JSON":          {`{"symkey":"QkJCQkJC`, layercrypt.ErrMalformed},
		"wrong type":        {`{"symkey":4242424242,` + nonce + `}`, layercrypt.ErrMalformed},
		"too long":          {strings.Repeat(" ", 5<<20), layercrypt.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := layercrypt.ParsePrivateOptions([]byte(tc.in))
			if !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if err != nil && (strings.Contains(err.Error(), "QkJC") || strings.Contains(err.Error(), "4242")) {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}
}

func TestNewReaderChecksOptions(t *testing.T) {
	t.Parallel()
	s := seal(t, 10)
	if _, err := layercrypt.NewReader(nil, layercrypt.PublicOptions{}, s.priv); !errors.Is(err, layercrypt.ErrUnsupported) {
		t.Errorf("zero public options: %v", err)
	}
	if _, err := layercrypt.NewReader(nil, s.pub, layercrypt.PrivateOptions{}); !errors.Is(err, layercrypt.ErrMalformed) {
		t.Errorf("zero private options: %v", err)
	}
}

func TestPrivateOptionsDoNotPrint(t *testing.T) {
	t.Parallel()
	priv := layercrypt.PrivateOptions{
		SymKey:        bytes.Repeat([]byte("B"), 32),
		CipherOptions: map[string][]byte{"nonce": bytes.Repeat([]byte("B"), 16)},
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "value", priv, "pointer", &priv)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "value", priv, "pointer", &priv)
	marshalled, err := json.Marshal(map[string]any{"value": priv, "pointer": &priv})
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(marshalled)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, priv) + fmt.Sprintf(verb, &priv)
	}
	for _, secret := range []string{"BB", "QkJC", "66 66", "0x42", "4242"} {
		if strings.Contains(out, secret) {
			t.Errorf("output has %q: %s", secret, out)
		}
	}
}

func TestClear(t *testing.T) {
	t.Parallel()
	s := seal(t, 0)
	key, nonce := s.priv.SymKey, s.priv.CipherOptions["nonce"]
	s.priv.Clear()
	if !bytes.Equal(key, make([]byte, 32)) || !bytes.Equal(nonce, make([]byte, 16)) {
		t.Error("key material is left")
	}
}

func FuzzParsePublicOptions(f *testing.F) {
	f.Add(golden(f, "public.json"))
	f.Add([]byte(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"","cipheroptions":{"nonce":""}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, err := layercrypt.ParsePublicOptions(b)
		if err != nil {
			return
		}
		if _, found := pub.CipherOptions["nonce"]; found || len(pub.HMAC) != 32 || pub.Cipher != layercrypt.Cipher {
			t.Errorf("accepted %q", b)
		}
	})
}

func FuzzParsePrivateOptions(f *testing.F) {
	f.Add(golden(f, "private.json"))
	f.Add([]byte(`{"symkey":[1,2,3],"digest":"sha256:","cipheroptions":{"nonce":null}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		priv, err := layercrypt.ParsePrivateOptions(b)
		if err != nil {
			return
		}
		pub := layercrypt.PublicOptions{Cipher: layercrypt.Cipher, HMAC: make([]byte, 32)}
		if _, err := layercrypt.NewReader(bytes.NewReader(nil), pub, priv); err != nil {
			t.Errorf("accepted %q, which makes no reader: %v", b, err)
		}
	})
}
