// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package initdata_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/attester/initdata"
)

const sound = `# kept, byte for byte
algorithm = "sha384"
version = "0.1.0"
unknown = 1

[data]
"policy.json" = '''
{"default": [{"type": "reject"}]}
'''
"aa.toml" = ""
`

// raw is the form of block devices, followed by padding up to a sector.
func raw(t testing.TB, text string) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(framed(uint64(z.Len()), z.Bytes()), make([]byte, 512)...)
}

func framed(length uint64, b []byte) []byte {
	return append(binary.LittleEndian.AppendUint64([]byte("initdata"), length), b...)
}

func TestRead(t *testing.T) {
	t.Parallel()
	for name, in := range map[string][]byte{"text": []byte(sound), "device": raw(t, sound)} {
		for _, r := range []io.Reader{bytes.NewReader(in), iotest.OneByteReader(bytes.NewReader(in)), iotest.DataErrReader(bytes.NewReader(in))} {
			d, err := initdata.Read(r)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if d.Text() != sound || d.Algorithm() != "sha384" {
				t.Errorf("%s: algorithm %s, text:\n%s", name, d.Algorithm(), d.Text())
			}
			// sha384sum of the text.
			const sum = "ebbda00023c903fc9941ae56b01b615004f8edefee0d8c51467c63cefc02dfefd33c238df03d4279095bca267d7dcc0e"
			if got := hex.EncodeToString(d.Digest()); got != sum {
				t.Errorf("%s: digest %s", name, got)
			}
			if diff := cmp.Diff([]string{"aa.toml", "policy.json"}, d.Names()); diff != "" {
				t.Error(diff)
			}
			b, ok := d.Entry("policy.json")
			if !ok || string(b) != "{\"default\": [{\"type\": \"reject\"}]}\n" {
				t.Errorf("%s: entry %q, %v", name, b, ok)
			}
			if _, ok := d.Entry("none"); ok {
				t.Error("an entry that is not there")
			}
			clear(b)
			clear(d.Digest())
			if b, _ := d.Entry("policy.json"); b[0] != '{' || d.Digest()[0] == 0 {
				t.Error("the document can be changed from outside")
			}
		}
	}
}

// The digests are what sha256sum and its kin print.
func TestDigest(t *testing.T) {
	t.Parallel()
	for algorithm, want := range map[string]string{
		"sha256": "976c3d497f6b6aa22e33cd2880f2844bd6c0ee26a58262a9bd63311f89863ba6",
		"sha384": "ba8bd1f237454b122d93312b5b9ac53c27b010fd37453f9141405ce53d4dedf0c79b222209310702ae810b2ab67eec72",
		"sha512": "41d5f5a7ef5b0ae58efee9d74be5bec3ea8591a414332ecaa2a1d59a976d3d00ad4a972f658251e5810870bb178fa8838abcdee3b051cfd1f09d5cc88cb7b45b",
	} {
		d, err := initdata.Parse([]byte("version=\"0.1.0\"\nalgorithm=\"" + algorithm + "\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(d.Digest()); got != want {
			t.Errorf("%s: %s", algorithm, got)
		}
	}
}

func TestFit(t *testing.T) {
	t.Parallel()
	if got := initdata.Fit([]byte{1, 2, 3}, 2); !bytes.Equal(got, []byte{1, 2}) {
		t.Errorf("cut to %v", got)
	}
	if got := initdata.Fit([]byte{1, 2}, 4); !bytes.Equal(got, []byte{1, 2, 0, 0}) {
		t.Errorf("filled up to %v", got)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	const head = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n"
	for _, tc := range []struct {
		text, want string
		class      error
	}{
		{"", "version is missing", errdefs.ErrInvalidArgument},
		{"version = \"0.1.0\"\n", "algorithm is missing", errdefs.ErrInvalidArgument},
		{"version = \"1\"\nalgorithm = \"sha256\"\n", `version "1"`, errdefs.ErrNotImplemented},
		{"version = \"0.1.0\"\nalgorithm = \"sm3\"\n", `algorithm "sm3"`, errdefs.ErrNotImplemented},
		{"version = \"0.1.0\"\nalgorithm = \"SHA256\"\n", `algorithm "SHA256"`, errdefs.ErrNotImplemented},
		{head + "[data]\n\"secret\" = 3\n", "line 4: not TOML with", errdefs.ErrInvalidArgument},
		{head + "[data]\na = \"secret\"\na = \"secret\"\n", "not TOML", errdefs.ErrInvalidArgument},
		{head + "data = \"secret\"", "not TOML", errdefs.ErrInvalidArgument},
		{head + "[data", "not TOML", errdefs.ErrInvalidArgument},
		{head + "# \xff", "not valid UTF-8", errdefs.ErrInvalidArgument},
		{head + strings.Repeat("a.b.c.d={}\n", 2000), "more than 4096 keys", errdefs.ErrInvalidArgument},
		{head + "a=" + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "", errdefs.ErrInvalidArgument},
		{head + "#" + strings.Repeat("x", initdata.MaxSize), "longer than", errdefs.ErrInvalidArgument},
		{head + "[data]\n" + entries(257), "more than 256 entries", errdefs.ErrInvalidArgument},
	} {
		_, err := initdata.Parse([]byte(tc.text))
		if !errors.Is(err, tc.class) || !strings.HasPrefix(err.Error(), "init-data: ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.60q: error %v, want %q", tc.text, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error quotes the document: %v", err)
		}
	}
	if _, err := initdata.Parse([]byte(head + "[data]\n" + entries(256))); err != nil {
		t.Error(err)
	}
}

func entries(n int) string {
	var s strings.Builder
	for i := range n {
		s.WriteString(strings.Repeat("a", i+1) + "=\"\"\n")
	}
	return s.String()
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	whole := raw(t, sound)
	packed := whole[16 : len(whole)-512]
	var bomb bytes.Buffer
	w, err := gzip.NewWriterLevel(&bomb, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(packed)
	damaged[len(damaged)-6] ^= 1 // of the checksum
	for name, tc := range map[string]struct {
		in   []byte
		want string
	}{
		"magic alone":        {[]byte("initdata"), "it ends before its length"},
		"half a length":      {[]byte("initdata\x01\x00"), "it ends before its length"},
		"no body":            {framed(9, nil), "it ends before its length"},
		"empty":              {framed(0, packed), "compressed length 0"},
		"length of all":      {framed(1<<63, packed), "is not 1 to"},
		"length of 2 MiB":    {framed(2<<20, make([]byte, 2<<20)), "is not 1 to"},
		"shorter than told":  {framed(uint64(len(packed)+1), packed), "it ends before its length"},
		"longer than told":   {framed(uint64(len(packed)-1), packed), "decompress"},
		"padding inside":     {framed(uint64(len(packed)+3), append(bytes.Clone(packed), 0, 0, 0)), "3 bytes follow the gzip stream"},
		"second member":      {framed(uint64(2*len(packed)), append(bytes.Clone(packed), packed...)), "follow the gzip stream"},
		"no gzip":            {framed(20, make([]byte, 20)), "gzip"},
		"wrong checksum":     {framed(uint64(len(damaged)), damaged), "checksum"},
		"gzip bomb":          {framed(uint64(bomb.Len()), bomb.Bytes()), "longer than"},
		"text inside is bad": {raw(t, "version = 1"), "not TOML"},
		"long text":          {bytes.Repeat([]byte("#"), initdata.MaxSize+1), "longer than"},
	} {
		if _, err := initdata.Read(bytes.NewReader(tc.in)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
	}
	away := errors.New("no medium")
	for _, in := range []string{"", "init", "initdata", "initdata\x09\x00\x00\x00\x00\x00\x00\x00x", "version"} {
		if _, err := initdata.Read(io.MultiReader(strings.NewReader(in), iotest.ErrReader(away))); !errors.Is(err, away) {
			t.Errorf("%q: error %v", in, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(sound))
	f.Add(raw(f, sound))
	f.Add([]byte("version=\"0.1.0\"\nalgorithm=\"sha256\"\ndata={a=\"b\"}"))
	f.Add(framed(4, []byte{0x1f, 0x8b, 8, 0}))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := initdata.Read(bytes.NewReader(in))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		again, err := initdata.Parse([]byte(d.Text()))
		if err != nil || !bytes.Equal(again.Digest(), d.Digest()) || cmp.Diff(d.Names(), again.Names()) != "" {
			t.Errorf("the text reads otherwise: %v", err)
		}
	})
}
