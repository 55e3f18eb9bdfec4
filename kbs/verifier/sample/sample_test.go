// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sample_test

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/kbs/verifier"
	"github.com/coffer-cc/coffer/kbs/verifier/sample"
)

func TestClaims(t *testing.T) {
	t.Parallel()
	b := verifier.Binding{ReportData: []byte("bound"), InitData: []byte("init")}
	got, err := sample.Verifier{}.Verify(t.Context(), []byte(`{"svn":"1","report_data":"Ym91bmQ="}`), b)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	const want = `{"TEE":{"debug":false,"launch_digest":"abcde","platform_version":{"major":1,"minor":4},"svn":"1"},"ReportData":"Ym91bmQ=","InitData":"aW5pdA=="}`
	if diff := cmp.Diff(want, string(text)); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, e := range map[string]string{
		"other binding": `{"svn":"1","report_data":"b3RoZXI="}`,
		"empty binding": `{"svn":"1","report_data":""}`,
		"no binding":    `{"svn":"1"}`,
		"not base64":    `{"svn":"1","report_data":"%"}`,
		"not JSON":      `{`,
		"text":          `"x"`,
	} {
		if _, err := (sample.Verifier{}).Verify(t.Context(), []byte(e), verifier.Binding{ReportData: []byte("bound")}); !errdefs.IsUnauthorized(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"svn":"1","report_data":"Ym91bmQ="}`))
	f.Add([]byte(`{"svn":"1","report_data":"other"}`))
	f.Fuzz(func(t *testing.T, e []byte) {
		c, err := sample.Verifier{}.Verify(t.Context(), e, verifier.Binding{ReportData: []byte("bound")})
		if err == nil && c.ReportData != "Ym91bmQ=" {
			t.Errorf("accepted %q", e)
		}
	})
}
