// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs"
	"github.com/coffer-cc/coffer/kbs/kbstest"
)

const initDataText = "# kept: <&> \"é\"\r\n\nalgorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\nrole = \"prod\"\n"

// The init-data rides in each attestation, byte for byte, and the service's
// resource policy sees its entries.
func TestInitData(t *testing.T) {
	t.Parallel()
	s := kbstest.New(t, kbstest.Options{Sample: true})
	s.Put("default/key/1", []byte("secret"))
	s.SetPolicy(`package policy
import rego.v1
default allow := false
allow if input.submods.cpu0["ear.veraison.annotated-evidence"].init_data_claims.role == "prod"
`)
	var sent []string
	s.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/attest") {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			var body struct {
				InitData json.RawMessage `json:"init-data"`
			}
			if err := json.Unmarshal(b, &body); err != nil {
				t.Error(err)
			}
			sent = append(sent, string(body.InitData))
			r.Body = io.NopCloser(strings.NewReader(string(b)))
		}
		return false
	})
	for text, allowed := range map[string]bool{initDataText: true, strings.Replace(initDataText, "prod", "test", 1): false, "": false} {
		sent = nil
		c, err := kbs.NewClient(s.URL, sampleTEE{}, kbs.ClientOptions{Deadline: 5 * time.Second, InitData: text})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.GetResource(t.Context(), "kbs:///default/key/1")
		if allowed && (err != nil || string(got) != "secret") || !allowed && !errdefs.IsPermissionDenied(err) {
			t.Errorf("init-data %q: %q, %v", text, got, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		var plain *struct{ Format, Body string }
		if len(sent) == 0 || json.Unmarshal([]byte(sent[0]), &plain) != nil {
			t.Fatalf("sent %q", sent)
		}
		if (plain == nil) != (text == "") || plain != nil && (plain.Format != "toml" || plain.Body != text) {
			t.Errorf("sent %q for %q", sent[0], text)
		}
	}
}
