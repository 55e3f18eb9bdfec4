// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/publish"
)

const (
	keysPrefix = "org.opencontainers.image.enc.keys."
	pubopts    = "org.opencontainers.image.enc.pubopts"
)

func TestInspect(t *testing.T) {
	t.Parallel()
	alice, bob, carol := rsaKeys(t), ecKeys(t), rsaKeys(t)
	pkcs7, err := publish.PKCS7(carol.certificate)
	if err != nil {
		t.Fatal(err)
	}
	host := newRegistry(t)
	newIndex(t, host+"/app:plain")
	_, err = encrypt(t.Context(), t, host+"/app:plain", host+"/app:enc", publish.Options{Recipients: []publish.Recipient{
		kbsRecipient(kid), kbsRecipient(kid + "2"), jweRecipient(t, alice.public, bob.public), pkcs7,
	}})
	if err != nil {
		t.Fatal(err)
	}
	report, err := publish.Inspect(t.Context(), parse(t, host+"/app:enc"), publish.Access{})
	if err != nil {
		t.Fatal(err)
	}
	if encrypted, all := report.Encrypted(); encrypted != 4 || all != 4 {
		t.Errorf("%d of %d layers encrypted", encrypted, all)
	}
	if len(report.Images) != 2 || report.Images[0].Platform != "linux/amd64" || report.Images[1].Platform != "linux/arm64/v8" {
		t.Fatalf("%+v", report)
	}
	want := publish.LayerReport{
		MediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted", Encrypted: true, Cipher: "AES_256_CTR_HMAC_SHA256",
		Recipients: []publish.RecipientReport{
			{Scheme: "jwe", Algorithm: "RSA-OAEP,ECDH-ES+A256KW", Count: 2},
			{Scheme: "pkcs7", KeyIDs: []string{"CN=somebody serial c0ffe5"}, Count: 1},
			{Scheme: "kbs", KeyIDs: []string{kid}, Algorithm: "A256GCM", Count: 1},
			{Scheme: "kbs", KeyIDs: []string{kid + "2"}, Algorithm: "A256GCM", Count: 1},
		},
	}
	for _, img := range report.Images {
		for _, got := range img.Layers {
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(got, "Digest", "Size")); diff != "" {
				t.Error(diff)
			}
		}
	}

	report, err = publish.Inspect(t.Context(), parse(t, host+"/app:plain"), publish.Access{})
	if err != nil {
		t.Fatal(err)
	}
	if encrypted, all := report.Encrypted(); encrypted != 0 || all != 4 {
		t.Errorf("plain image: %d of %d layers encrypted", encrypted, all)
	}
}

// TestInspectIsPrintable shows what a registry may put where people look.
func TestInspectIsPrintable(t *testing.T) {
	t.Parallel()
	const clear = "\x1b[2J"
	got := publish.InspectLayer(ocispec.Descriptor{MediaType: "text/" + clear, Digest: "sha256:" + clear})
	if text := got.MediaType + got.Digest.String(); strings.Contains(text, "\x1b") {
		t.Errorf("%q", text)
	}
	src := "oci:" + t.TempDir() + ":plain"
	source := target(t, src)
	config := push(t, source, ocispec.MediaTypeImageConfig, []byte(`{"os":"\u001b[2J","architecture":"amd64"}`))
	manifest := push(t, source, ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"`+config.MediaType+
		`","digest":"`+config.Digest.String()+`","size":`+strconv.FormatInt(config.Size, 10)+`},"layers":[]}`))
	tag(t, source, manifest, "plain")
	report, err := publish.Inspect(t.Context(), parse(t, src), publish.Access{})
	if err != nil || len(report.Images) != 1 || report.Images[0].Platform != "?[2J/amd64" {
		t.Errorf("%+v %v", report, err)
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// inspectOne inspects an image of one layer with these annotations.
func inspectOne(t testing.TB, mediaType string, annotations map[string]string) publish.LayerReport {
	t.Helper()
	return publish.InspectLayer(ocispec.Descriptor{MediaType: mediaType, Digest: someDigest, Size: 1, Annotations: annotations})
}

func TestInspectAnnotations(t *testing.T) {
	t.Parallel()
	const encrypted = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	good := b64(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + b64(strings.Repeat("m", 32)) + `","cipheroptions":{}}`)
	compactJWE := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RSA-OAEP-256","enc":"A256GCM","kid":"me"}`)) + ".a.b.c.d"
	packet := b64(`{"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAA","wrap_type":"A256GCM"}`)
	tests := []struct {
		name        string
		mediaType   string
		annotations map[string]string
		recipients  []publish.RecipientReport
		problem     string
	}{
		{name: "compact jwe", annotations: map[string]string{pubopts: good, keysPrefix + "jwe": b64(compactJWE)},
			recipients: []publish.RecipientReport{{Scheme: "jwe", KeyIDs: []string{"me"}, Algorithm: "RSA-OAEP-256", Count: 1}}},
		{name: "pgp", annotations: map[string]string{pubopts: good, keysPrefix + "pgp": b64("x") + "," + b64("y")},
			recipients: []publish.RecipientReport{{Scheme: "pgp", Count: 1}, {Scheme: "pgp", Count: 1}}},
		{name: "another provider", annotations: map[string]string{pubopts: good, keysPrefix + "provider.mine": b64("x")},
			recipients: []publish.RecipientReport{{Scheme: "provider.mine", Count: 1}}},
		{name: "hostile name", annotations: map[string]string{pubopts: good, keysPrefix + "a\x1b[2J": b64("x")},
			recipients: []publish.RecipientReport{{Scheme: "a?[2J", Count: 1}}},
		{name: "not jwe", annotations: map[string]string{pubopts: good, keysPrefix + "jwe": b64("{}")},
			recipients: []publish.RecipientReport{{Scheme: "jwe", Count: 1}}, problem: "jwe: not a JSON Web Encryption"},
		{name: "not pkcs7", annotations: map[string]string{pubopts: good, keysPrefix + "pkcs7": b64("{}")},
			recipients: []publish.RecipientReport{{Scheme: "pkcs7", Count: 1}}, problem: "pkcs7: not PKCS#7"},
		{name: "not base64", annotations: map[string]string{
			pubopts: good, keysPrefix + "jwe": "!", keysPrefix + "provider.attestation-agent": packet,
		}, recipients: []publish.RecipientReport{{Scheme: "kbs", KeyIDs: []string{"kbs:///a/b/c"}, Algorithm: "A256GCM", Count: 1}}, problem: "base64"},
		{name: "no options", annotations: map[string]string{keysPrefix + "provider.attestation-agent": packet},
			recipients: []publish.RecipientReport{{Scheme: "kbs", KeyIDs: []string{"kbs:///a/b/c"}, Algorithm: "A256GCM", Count: 1}}, problem: "pubopts"},
		{name: "no keys", annotations: map[string]string{pubopts: good}, problem: "nobody can decrypt"},
		{name: "plain with keys", mediaType: ocispec.MediaTypeImageLayerGzip, annotations: map[string]string{keysPrefix + "jwe": "x"},
			problem: "media type of a plain layer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.mediaType == "" {
				test.mediaType = encrypted
			}
			got := inspectOne(t, test.mediaType, test.annotations)
			if diff := cmp.Diff(test.recipients, got.Recipients); diff != "" {
				t.Error(diff)
			}
			problems := strings.Join(got.Problems, "; ")
			if (test.problem == "") != (problems == "") || !strings.Contains(problems, test.problem) {
				t.Errorf("problems %q, want %q", problems, test.problem)
			}
		})
	}
}

func FuzzInspectAnnotations(f *testing.F) {
	carol := rsaKeys(f)
	f.Add("jwe", []byte(`{"protected":"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ","recipients":[{"header":{"kid":"a"}},{}]}`), "AES")
	f.Add("jwe", []byte("eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d"), "")
	f.Add("provider.attestation-agent", []byte(`{"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAA","wrap_type":"A256GCM"}`), "x")
	f.Add("pkcs7", carol.certificate, "\x1b")
	f.Add("pgp\x00\xff", []byte("x"), "x")
	f.Fuzz(func(t *testing.T, scheme string, packet []byte, cipher string) {
		options, err := json.Marshal(map[string]string{"cipher": cipher})
		if err != nil {
			t.Skip()
		}
		raw := inspectOne(t, ocispec.MediaTypeImageLayer+"+encrypted", map[string]string{keysPrefix + scheme: string(packet), pubopts: string(packet)})
		got := inspectOne(t, ocispec.MediaTypeImageLayer+"+encrypted", map[string]string{
			keysPrefix + scheme: base64.StdEncoding.EncodeToString(packet), pubopts: b64(string(options)),
		})
		for _, report := range []publish.LayerReport{raw, got} {
			texts := append([]string{report.Cipher}, report.Problems...)
			for _, r := range report.Recipients {
				texts = append(append(texts, r.Scheme, r.Algorithm), r.KeyIDs...)
			}
			for _, text := range texts {
				if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("text for a terminal: %q", text)
				}
			}
		}
	})
}
