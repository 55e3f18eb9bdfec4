// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// TestInspectSkopeoImage: an image that Debian's skopeo encrypted for a JWE
// recipient is understood.
func TestInspectSkopeoImage(t *testing.T) {
	t.Parallel()
	skopeo, err := exec.LookPath("skopeo")
	needs(t, "skopeo", err)
	coffer := filepath.Join(buildPrograms(t), "coffer")
	dir := t.TempDir()
	img, err := testbed.NewImage(testbed.ImageOptions{Layers: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := testbed.WriteLayout(img, filepath.Join(dir, "plain"), "1"); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = testbed.Run(t.Context(), skopeo, "--policy", policy, "copy", "--encryption-key", "jwe:"+publicKey(t, dir),
		"oci:"+filepath.Join(dir, "plain")+":1", "oci:"+filepath.Join(dir, "encrypted")+":1")
	if err != nil {
		t.Fatal(err)
	}
	out, err := testbed.Run(t.Context(), coffer, "inspect", "--json", "oci:"+filepath.Join(dir, "encrypted")+":1")
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Images []struct {
			Layers []struct {
				Encrypted  bool     `json:"encrypted"`
				Cipher     string   `json:"cipher"`
				Problems   []string `json:"problems"`
				Recipients []struct {
					Scheme string `json:"scheme"`
				} `json:"recipients"`
			} `json:"layers"`
		} `json:"images"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(report.Images) != 1 || len(report.Images[0].Layers) != 3 {
		t.Fatalf("want one image with 3 layers:\n%s", out)
	}
	for _, l := range report.Images[0].Layers {
		if !l.Encrypted || l.Cipher != "AES_256_CTR_HMAC_SHA256" || len(l.Problems) > 0 ||
			len(l.Recipients) != 1 || l.Recipients[0].Scheme != "jwe" {
			t.Errorf("want a layer encrypted for one jwe recipient: %+v", l)
		}
	}
}

// publicKey writes a new RSA public key to dir and returns its file.
func publicKey(t *testing.T, dir string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "public.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
