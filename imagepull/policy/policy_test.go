// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/policy"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

func TestParseErrorsNameThePlace(t *testing.T) {
	t.Parallel()
	key := b64(sigstoretest.PublicPEM(t, sigstoretest.NewKey(t)))
	ca := b64(sigstoretest.CertPEM(sigstoretest.New(t).Root))
	accept := `[{"type":"insecureAcceptAnything"}]`
	signedBy := func(members string) string { return requires(`{"type":"signedBy",` + members + `}`) }
	identity := func(members string) string {
		return bySigstore(`"keyData":"` + key + `","signedIdentity":{` + members + `}`)
	}
	fulcio := func(members string) string {
		return bySigstore(`"rekorPublicKeyData":"` + key + `","fulcio":{` + members + `}`)
	}
	for doc, want := range map[string]string{
		``:                                      "not JSON",
		`[]`:                                    "the document: not an object",
		`{"default":` + accept + `} {}`:         "something follows",
		`{"default":` + accept + `,}`:           "not JSON at byte",
		"{\"default\":\"\xff\"}":                "not UTF-8",
		strings.Repeat("[", 40):                 "nested deeper",
		strings.Repeat(" ", 1<<20+1):            "longer than",
		`{}`:                                    "default: missing",
		`{"default":[]}`:                        "default: no requirement",
		`{"default":null}`:                      "default: not an array",
		`{"Default":` + accept + `}`:            "default: missing",
		`{"default":` + accept + `,"x":1}`:      "x: unknown member",
		`{"default":[{}]}`:                      "default[0].type: missing",
		`{"default":[1]}`:                       "default[0]: not an object",
		`{"default":[{"type":"signed"}]}`:       `default[0].type: unknown requirement "signed"`,
		`{"default":[{"type":"reject","a":1}]}`: "default[0].a: unknown member",
		`{"default":[{"type":"reject","type":"insecureAcceptAnything"}]}`:                                        "default[0].type: given twice",
		`{"default":` + accept + `,"default":` + accept + `}`:                                                    "default: given twice",
		`{"default":` + accept + `,"transports":[]}`:                                                             "transports: not an object",
		`{"default":` + accept + `,"transports":{"docker":{"quay.io/x":[]}}}`:                                    `transports.docker["quay.io/x"]: no requirement`,
		`{"default":` + accept + `,"transports":{"docker":{"quay.io/":` + accept + `}}}`:                         `transports.docker["quay.io/"]: a scope neither`,
		`{"default":` + accept + `,"transports":{"docker":{"busybox":` + accept + `}}}`:                          `docker.io/library`,
		`{"default":` + accept + `,"transports":{"docker":{"a.b*":` + accept + `}}}`:                             `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"https://a.b":` + accept + `}}}`:                      `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"*.a/b":` + accept + `}}}`:                            `wildcard`,
		`{"default":` + accept + `,"transports":{"docker":{"Quay.io/x":` + accept + `}}}`:                        `write "quay.io/x"`,
		`{"default":` + accept + `,"transports":{"docker":{"Quay.io":` + accept + `}}}`:                          `write "quay.io"`,
		`{"default":` + accept + `,"transports":{"docker":{"a.b/c":` + accept + `,"a.b:443/c":` + accept + `}}}`: `transports.docker["a.b:443/c"]: given twice`,
		`{"default":` + accept + `,"transports":{"docker":{"index.docker.io":` + accept + `}}}`:                  `write "docker.io"`,
		`{"default":` + accept + `,"transports":{"docker":{"docker.io/nginx:1":` + accept + `}}}`:                `write "docker.io/library/nginx:1"`,
		`{"default":` + accept + `,"transports":{"docker":{"quay.io/X":` + accept + `}}}`:                        `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"quay.io./x":` + accept + `}}}`:                       `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"quay.io:x/y":` + accept + `}}}`:                      `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"quay.io/x@sha256:1":` + accept + `}}}`:               `not a scope`,
		`{"default":` + accept + `,"transports":{"docker":{"*.Example.com":` + accept + `}}}`:                    `wildcard`,
		`{"default":` + accept + `,"transports":{"docker":{"*.example.com.":` + accept + `}}}`:                   `wildcard`,
		`{"default":` + accept + `,"transports":{"dir":{"/x":[{"type":"no"}]}}}`:                                 `transports.dir["/x"][0].type`,

		signedBy(`"keyPath":"/k"`):                                                             "keyType: missing",
		signedBy(`"keyType":"X509CAs","keyPath":"/k"`):                                         "use GPGKeys",
		signedBy(`"keyType":"GPGKeys"`):                                                        "default[0]: no key",
		signedBy(`"keyType":"GPGKeys","keyPath":"k"`):                                          "default[0].keyPath: ",
		signedBy(`"keyType":"GPGKeys","keyPath":"http://a/k"`):                                 "neither kbs:///",
		signedBy(`"keyType":"GPGKeys","keyPath":"kbs://"`):                                     "neither kbs:///",
		signedBy(`"keyType":"GPGKeys","keyPath":"/a/../k"`):                                    "neither kbs:///",
		signedBy(`"keyType":"GPGKeys","keyPath":"/k","keyPaths":["/k"]`):                       "give only one of keyPath, keyPaths",
		signedBy(`"keyType":"GPGKeys","keyPaths":[]`):                                          "keyPaths: not an array with something",
		signedBy(`"keyType":"GPGKeys","keyData":"!"`):                                          "keyData: neither base64 nor PEM",
		signedBy(`"keyType":"GPGKeys","keyData":"AAAA"`):                                       "no OpenPGP public key",
		signedBy(`"keyType":"GPGKeys","keyDatas":["AAAA"]`):                                    "default[0]: no key",
		signedBy(`"keyType":"GPGKeys","keyPath":"/k","signedIdentity":"x"`):                    "default[0].signedIdentity: not an object",
		signedBy(`"keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"anyIdentity"}`): "anyIdentity is for sigstoreSigned",

		bySigstore(`"keyData":"AAAA"`):                                                                         "default[0].keyData: not a PEM public key",
		bySigstore(`"keyDatas":["` + key + `",""]`):                                                            "keyDatas: element 1",
		bySigstore(`"rekorPublicKeyData":"` + key + `"`):                                                       "give exactly one of keyPath",
		bySigstore(`"keyData":"` + key + `","pki":{}`):                                                         "default[0].pki: no root",
		bySigstore(`"keyData":"` + key + `","fulcio":{}`):                                                      "default[0].fulcio",
		identity(`"type":"matchAll"`):                                                                          `signedIdentity.type: unknown "matchAll"`,
		identity(``):                                                                                           "signedIdentity.type: missing",
		identity(`"type":"matchExact","prefix":"a.b"`):                                                         "signedIdentity.prefix: unknown member",
		identity(`"type":"exactReference"`):                                                                    "dockerReference",
		identity(`"type":"exactReference","dockerReference":"a.b/c"`):                                          "tag or digest is needed",
		identity(`"type":"exactRepository","dockerRepository":"a.b/c:d"`):                                      "neither tag nor digest",
		identity(`"type":"exactRepository","dockerRepository":"a.b/C"`):                                        "not an image reference",
		identity(`"type":"remapIdentity","prefix":"a.b"`):                                                      "signedPrefix: not a host",
		identity(`"type":"remapIdentity","prefix":"a.b/","signedPrefix":"c.d"`):                                "prefix: not a host",
		fulcio(`"oidcIssuer":"i","subjectEmail":"e"`):                                                          "give exactly one of caPath",
		fulcio(`"caData":"` + ca + `","subjectEmail":"e"`):                                                     "oidcIssuer: missing",
		fulcio(`"caData":"` + ca + `","oidcIssuer":"i"`):                                                       "give exactly one of subjectEmail",
		fulcio(`"caData":"` + ca + `","oidcIssuer":"i","subjectEmail":"e","subjectURI":"u"`):                   "give exactly one of subjectEmail",
		fulcio(`"caData":"` + ca + `","oidcIssuer":"i","subjectURIPrefix":"https://git.test"`):                 "subjectURIPrefix: a prefix",
		fulcio(`"caData":"` + ca + `","oidcIssuer":"i","subjectURIPrefix":"https://git.test/acme"`):            "subjectURIPrefix: a prefix",
		fulcio(`"caData":"` + ca + `","oidcIssuer":"i","subjectURIPrefix":"https://acme@git.test"`):            "subjectURIPrefix: a prefix",
		fulcio(`"trustedRoot":"mine","oidcIssuer":"i","subjectEmail":"e"`):                                     `"mine" is not built in`,
		fulcio(`"trustedRootData":"e30=","oidcIssuer":"i","subjectEmail":"e"`):                                 "fulcio.trustedRootData: not a sigstore trusted root",
		bySigstore(`"fulcio":{"caData":"` + ca + `","oidcIssuer":"i","subjectEmail":"e"}`):                     "needs rekorPublicKeyPath",
		bySigstore(`"pki":{"caRootsData":"` + ca + `"}`):                                                       "no subject",
		bySigstore(`"rekorPublicKeyData":"` + key + `","pki":{"caRootsData":"` + ca + `","subjectEmail":"e"}`): "pki does not use rekor",
		requires(`{"type":"digests"}`):                                                                         "digests: missing",
		requires(`{"type":"digests","digests":[]}`):                                                            "digests: not an array",
		requires(`{"type":"digests","digests":["sha512:aa"]}`):                                                 "digests: element 0",
	} {
		_, err := policy.Parse([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s\n  error %v\n  want %q", clipped(doc), err, want)
		}
	}
}

func clipped(s string) string {
	if len(s) > 300 {
		return s[:300]
	}
	return s
}

// TestDocumentedPolicies are policies of the kind that containers' own manual
// page shows, and guest-components' form of a cosign key.
func TestDocumentedPolicies(t *testing.T) {
	t.Parallel()
	pem := strings.ReplaceAll(string(sigstoretest.PublicPEM(t, sigstoretest.NewKey(t))), "\n", `\n`)
	for _, doc := range []string{
		`{"default":[{"type":"insecureAcceptAnything"}]}`,
		`{"default":[{"type":"reject"}],"transports":{}}`,
		`{"default":[{"type":"reject"}],"transports":{
			"docker":{
				"docker.io/openshift":[{"type":"insecureAcceptAnything"}],
				"docker.io/nginx":[{"type":"insecureAcceptAnything"}],
				"*.temporary-project.example.com":[{"type":"insecureAcceptAnything"}],
				"hostname:5000/allow/pull":[{"type":"insecureAcceptAnything"}],
				"registry.access.redhat.com":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/etc/pki/rpm-gpg/RPM-GPG-KEY-redhat-release"}],
				"my-registry.example.com/mirrors":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/etc/pki/vendor.gpg",
					"signedIdentity":{"type":"remapIdentity","prefix":"my-registry.example.com/mirrors/vendor","signedPrefix":"vendor.example.com"}}],
				"hostname:5000/myns/sigstore-signed-allows-insecure-tag":[{"type":"sigstoreSigned","keyPaths":["kbs:///default/key/1","file:///k.pub"],"signedIdentity":{"type":"matchRepository"}}],
				"":[{"type":"insecureAcceptAnything"}]
			},
			"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]},
			"atomic":{"x":[{"type":"reject"}]}
		}}`,
		`{"default":[{"type":"sigstoreSigned","keyData":"` + pem + `"}]}`,
		`{"default":[{"type":"sigstoreSigned","rekorPublicKeyPath":"/r.pub","fulcio":{"caPath":"/ca.pem","oidcIssuer":"https://expected.oidc.issuer","subjectEmail":"user@example.test"}}]}`,
		`{"default":[{"type":"sigstoreSigned","fulcio":{"trustedRoot":"public-good","oidcIssuer":"https://token.actions.githubusercontent.com","subjectURIPrefix":"https://github.com/org/repo/"}}]}`,
		`{"default":[{"type":"sigstoreSigned","pki":{"caRootsPath":"/r.pem","caIntermediatesPath":"/i.pem","subjectHostname":"build.example.test"}}]}`,
	} {
		if _, err := policy.Parse([]byte(doc)); err != nil {
			t.Errorf("%v\n%s", err, doc)
		}
	}
}

// TestScopes asks which scope an image falls under: the one that rejects.
func TestScopes(t *testing.T) {
	t.Parallel()
	const dgst = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, c := range []struct{ image, order string }{
		{"host.sub.example.com:8443/a/b/c:1.0", "host.sub.example.com:8443/a/b/c:1.0 host.sub.example.com:8443/a/b/c host.sub.example.com:8443/a/b host.sub.example.com:8443/a " +
			"host.sub.example.com:8443 *.sub.example.com *.example.com *.com"},
		{"quay.io/x" + dgst, "quay.io/x" + dgst + " quay.io/x quay.io *.io"},
		{"quay.io/x:1" + dgst, "quay.io/x:1" + dgst + " quay.io/x" + dgst + " quay.io/x:1 quay.io/x quay.io *.io"},
		{"busybox", "docker.io/library/busybox:latest docker.io/library/busybox docker.io/library docker.io *.io"},
		{"localhost:5000/a:1", "localhost:5000/a:1 localhost:5000/a localhost:5000"},
	} {
		scopes := append(strings.Fields(c.order), "")
		s := newScene(t)
		s.image.Name = c.image
		if strings.Contains(c.image, dgst) {
			s.image.Manifest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		}
		// Every scope is there and the first counts; then the first goes.
		for i := range scopes {
			var entries []string
			for j, scope := range scopes[i:] {
				what := "insecureAcceptAnything"
				if j == 0 {
					what = "reject"
				}
				entries = append(entries, `"`+scope+`":[{"type":"`+what+`"}]`)
			}
			err := s.verify(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{`+strings.Join(entries, ",")+`}}}`, policy.Options{})
			text := scopes[i]
			if text == "" {
				text = `""`
			}
			want(t, err, errdefs.ErrPermissionDenied, "image policy: "+text+" requires reject: ")
		}
		want(t, s.verify(`{"default":[{"type":"reject"}],"transports":{"docker":{"other.example":[{"type":"insecureAcceptAnything"}]}}}`, policy.Options{}),
			errdefs.ErrPermissionDenied, "image policy: default requires reject: ")
	}
}

// TestScopesAreWhole: a scope is no substring.
func TestScopesAreWhole(t *testing.T) {
	t.Parallel()
	for image, scope := range map[string]string{
		"quay.io.evil.example/x:1":   "quay.io",
		"evil.example/quay.io/x:1":   "quay.io/x",
		"quay.io/team2/x:1":          "quay.io/team",
		"quay.io/team/x:10":          "quay.io/team/x:1",
		"example.com/x:1":            "*.example.com",
		"a.b.example.com.evil.org/x": "*.example.com",
		"quay.io:5000/x:1":           "quay.io",
		"quay.io:443/x:1":            "quay.io:5000",
	} {
		s := newScene(t)
		s.image.Name = image
		err := s.verify(`{"default":[{"type":"reject"}],"transports":{"docker":{"`+scope+`":[{"type":"insecureAcceptAnything"}]}}}`, policy.Options{})
		want(t, err, errdefs.ErrPermissionDenied, "default requires reject")
	}
}

// TestOtherSpellings: a scope holds for its host however the host is spelled.
func TestOtherSpellings(t *testing.T) {
	t.Parallel()
	const doc = `{"default":[{"type":"reject"}],"transports":{"docker":{
		"*.example.com":[{"type":"insecureAcceptAnything"}],
		"registry.example.com/secure":[{"type":"reject"}],
		"other.example.com:443/secure":[{"type":"reject"}]}}}`
	for image, class := range map[string]error{
		"registry.example.com/open/app:1":       nil,
		"registry.example.com:5000/secure/app":  nil, // another registry
		"registry.example.com/secure/app:1":     errDenied,
		"Registry.Example.COM/secure/app:1":     errDenied,
		"registry.example.com:443/secure/app:1": errDenied,
		"REGISTRY.example.com:443/secure:1":     errDenied,
		"other.example.com/secure/app:1":        errDenied,
		"other.example.com:443/secure/app:1":    errDenied,
	} {
		s := newScene(t)
		s.image.Name = image
		want(t, s.verify(doc, policy.Options{}), class)
	}
}

// FuzzParse: no input breaks the parser, and no policy that it reads allows an
// image by accident: one without any accepting requirement allows none of a
// registry that has no signatures.
func FuzzParse(f *testing.F) {
	for _, doc := range []string{
		requires(`{"type":"insecureAcceptAnything"}`),
		requires(`{"type":"reject"}`),
		requires(`{"type":"digests","digests":["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]}`),
		`{"default":[{"type":"reject"}],"transports":{"docker":{"*.a.b":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a.b","signedPrefix":"c.d/e"}}],"":[{"type":"reject"}]}}}`,
		bySigstore(`"keyPaths":["kbs:///a/b/c"],"rekorPublicKeyPath":"/r","signedIdentity":{"type":"exactReference","dockerReference":"a.b/c:d"}`),
		bySigstore(`"fulcio":{"trustedRoot":"public-good","oidcIssuer":"i","subjectURIPrefix":"https://a/b/"}`),
		bySigstore(`"pki":{"caRootsPath":"/r","subjectHostname":"h"}`),
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := policy.Parse(b)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		text := string(b)
		if strings.Contains(text, `\u`) || strings.Contains(text, "insecureAcceptAnything") || strings.Contains(text, "digests") {
			return
		}
		err = policy.NewVerifier(p, newRepo(), nil, policy.Options{}).Verify(t.Context(), policy.Image{
			Name: "a.b/c:d", Manifest: "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
		})
		if err == nil {
			t.Error("allowed")
		}
	})
}
