// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

const keysPrefix = "org.opencontainers.image.enc.keys."

func TestKeyPackets(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        []layercrypt.KeyPacket
		err         error
	}{
		"none":  {annotations: map[string]string{"org.opencontainers.image.enc.pubopts": "e30=", "other": "x"}},
		"empty": {annotations: map[string]string{keysPrefix + "jwe": ""}},
		"several": {
			annotations: map[string]string{
				keysPrefix + "provider.attestation-agent": "YQ==,Yg==",
				keysPrefix + "jwe":                        "Yw==",
			},
			want: []layercrypt.KeyPacket{
				{Scheme: "jwe", Data: []byte("c")},
				{Scheme: "provider.attestation-agent", Data: []byte("a")},
				{Scheme: "provider.attestation-agent", Data: []byte("b")},
			},
		},
		"no scheme":    {annotations: map[string]string{keysPrefix: "YQ=="}, err: layercrypt.ErrMalformed},
		"not base64":   {annotations: map[string]string{keysPrefix + "jwe": "{}"}, err: layercrypt.ErrMalformed},
		"empty member": {annotations: map[string]string{keysPrefix + "jwe": "YQ==,"}, err: layercrypt.ErrMalformed},
		"too many": {
			annotations: map[string]string{keysPrefix + "jwe": strings.Repeat("YQ==,", 1023) + "YQ==", keysPrefix + "pgp": "YQ=="},
			err:         layercrypt.ErrMalformed,
		},
		"too long value": {annotations: map[string]string{keysPrefix + "jwe": strings.Repeat("A", 5<<20)}, err: layercrypt.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := layercrypt.KeyPackets(tc.annotations)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error is %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMostKeyPackets(t *testing.T) {
	t.Parallel()
	packets, err := layercrypt.KeyPackets(map[string]string{
		keysPrefix + "jwe": strings.Repeat("YQ==,", 1022) + "YQ==", keysPrefix + "pgp": "YQ==",
	})
	if err != nil || len(packets) != 1024 {
		t.Errorf("%d packets, error %v", len(packets), err)
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	for encrypted, plain := range map[string]string{
		"application/vnd.oci.image.layer.v1.tar+encrypted":                       "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":                  "application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar+zstd+encrypted":                  "application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+encrypted":      "application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd+encrypted": "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zsdt+encrypted": "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted":            "application/vnd.docker.image.rootfs.diff.tar.gzip",
	} {
		if !layercrypt.IsEncrypted(encrypted) || layercrypt.PlainMediaType(encrypted) != plain {
			t.Errorf("%s: encrypted %t, plain %s", encrypted, layercrypt.IsEncrypted(encrypted), layercrypt.PlainMediaType(encrypted))
		}
		if layercrypt.IsEncrypted(plain) || layercrypt.PlainMediaType(plain) != plain {
			t.Errorf("%s counts as encrypted", plain)
		}
	}
}

func FuzzKeyPackets(f *testing.F) {
	f.Add("provider.attestation-agent", "YQ==,Yg==")
	f.Add("jwe", "YQ")
	f.Add("", ",")
	f.Fuzz(func(t *testing.T, scheme, value string) {
		packets, err := layercrypt.KeyPackets(map[string]string{keysPrefix + scheme: value})
		if err != nil || value == "" {
			if len(packets) > 0 {
				t.Error("packets beside an error")
			}
			return
		}
		var parts []string
		for _, p := range packets {
			if p.Scheme != scheme || len(p.Data) == 0 {
				t.Errorf("packet %+v of %q", p, value)
			}
			parts = append(parts, base64.StdEncoding.EncodeToString(p.Data))
		}
		// What was accepted means the same once written again.
		again, err := layercrypt.KeyPackets(map[string]string{keysPrefix + scheme: strings.Join(parts, ",")})
		if err != nil || !cmp.Equal(packets, again) {
			t.Errorf("%q does not survive: %v", value, err)
		}
	})
}
