// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// FuzzPayload: what is read as a payload names a digest and a reference.
func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"critical":{"identity":{"docker-reference":"a.b/c:1"},"image":{"docker-manifest-digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},"type":"cosign container image signature"},"optional":null}`), true)
	f.Add([]byte(`{"critical":{},"optional":{"timestamp":1e400}}`), false)
	f.Fuzz(func(t *testing.T, b []byte, cosign bool) {
		kind := payloadSimple
		if cosign {
			kind = payloadCosign
		}
		p, err := parsePayload(b, kind)
		if err == nil && (p.digest.Validate() != nil || p.reference == "") {
			t.Errorf("%+v", p)
		}
	})
}

// FuzzSimple reads anything as an OpenPGP signature: none that the fuzzer
// makes has other content than the good one.
func FuzzSimple(f *testing.F) {
	read := func(name string) []byte {
		b, err := os.ReadFile("testdata/skopeo-1.9.3/" + name)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	for _, name := range []string{"ed.sig", "rsa.sig", "two.sig", "sha1.sig", "clear.sig", "ed.gpg"} {
		f.Add(read(name))
	}
	keys, err := parseKeyring(read("ed.gpg"))
	if err != nil {
		f.Fatal(err)
	}
	want := digest.FromBytes(read("manifest.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		content, err := openSignature(keys, b, time.Now)
		if err != nil {
			return
		}
		if p, err := parsePayload(content, payloadSimple); err != nil || p.digest != want {
			t.Errorf("a good signature of %q", content)
		}
	})
}
