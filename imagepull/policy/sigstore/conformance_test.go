// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
)

// TestConformance runs the cases of github.com/sigstore/sigstore-conformance
// that are about verifying bundles. SIGSTORE_CONFORMANCE names a checkout.
func TestConformance(t *testing.T) {
	t.Parallel()
	checkout := os.Getenv("SIGSTORE_CONFORMANCE")
	if checkout == "" {
		if strings.Contains(os.Getenv("REQUIRE"), "conformance") {
			t.Fatal("SIGSTORE_CONFORMANCE is not set")
		}
		t.Skip("SIGSTORE_CONFORMANCE names no checkout of sigstore-conformance")
	}
	bundles, err := filepath.Glob(filepath.Join(checkout, "test/assets/bundle-verify/*/bundle.sigstore.json"))
	if err != nil || len(bundles) < 60 {
		t.Fatalf("%d cases, %v", len(bundles), err)
	}
	for _, bundle := range bundles {
		dir := filepath.Dir(bundle)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			err := conforms(dir)
			switch {
			case differs()[filepath.Base(dir)] != "":
				if err == nil {
					t.Error("accepted")
				}
				t.Logf("refused on purpose, since %s: %v", differs()[filepath.Base(dir)], err)
			case strings.HasSuffix(dir, "_fail") && err == nil:
				t.Error("accepted")
			case !strings.HasSuffix(dir, "_fail") && err != nil:
				t.Error(err)
			}
			t.Log(err)
		})
	}
}

// differs are the cases that we are stricter about, and why.
func differs() map[string]string { return map[string]string{} }

func conforms(dir string) error {
	read := func(name, otherwise string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return []byte(otherwise)
		}
		return b
	}
	sig, err := sigstore.ParseBundle(read("bundle.sigstore.json", ""))
	if err != nil {
		return err
	}
	artifact := read("artifact", string(read("../a.txt", "")))
	digest := sha256.Sum256(artifact)
	root, err := sigstore.PublicGood()
	if b := read("trusted_root.json", ""); len(b) > 0 {
		root, err = sigstore.ParseRoot(b)
	}
	if err != nil {
		return err
	}
	trust := &sigstore.Trust{Timestamp: root.Timestamp}
	if pem := read("key.pub", ""); len(pem) > 0 {
		key, err := sigstore.ParsePublicKey(pem)
		if err != nil {
			return err
		}
		trust.Keys = []crypto.PublicKey{key}
	} else {
		trust.Rekor = root.Rekor
		trust.Fulcio = &sigstore.Fulcio{Authorities: root.Fulcio, CT: root.CT, Identity: sigstore.Identity{
			Issuer: string(bytes.TrimSpace(read("issuer", "https://token.actions.githubusercontent.com"))),
			URI: string(bytes.TrimSpace(read("identity",
				"https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"))),
		}}
		if id := &trust.Fulcio.Identity; strings.Contains(id.URI, "@") && !strings.Contains(id.URI, "://") {
			id.Email, id.URI = id.URI, ""
		}
	}
	if sig.Digest != nil {
		sig.Message = artifact
		if !bytes.Equal(sig.Digest, digest[:]) {
			return errors.New("another artifact")
		}
	}
	if err := trust.Verify(sig); err != nil || sig.Envelope == nil {
		return err
	}
	st, err := sig.Envelope.Statement()
	if err != nil {
		return err
	}
	for _, s := range st.Subject {
		if s.Digest["sha256"] == hex.EncodeToString(digest[:]) {
			return nil
		}
	}
	return errors.New("another subject")
}
