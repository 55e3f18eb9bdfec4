// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package evidence_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/attester/evidence"
)

func TestGolden(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		have any
		want string
	}{
		{"sample", evidence.SampleEvidence{SVN: "1", ReportData: []byte{1, 255}}, `{"svn":"1","report_data":"Af8="}`},
		{"tdx", evidence.TDXEvidence{CCEventLog: []byte{9}, Quote: []byte{4, 0}}, `{"cc_eventlog":"CQ==","quote":"BAA="}`},
		{"tdx without event log", evidence.TDXEvidence{Quote: []byte{4, 0}}, `{"cc_eventlog":null,"quote":"BAA="}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b, err := json.Marshal(tc.have)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, string(b)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	if e, err := evidence.ParseSample([]byte(`{"svn":"1","report_data":"Af8=","more":{}}`)); err != nil ||
		!cmp.Equal(e, evidence.SampleEvidence{SVN: "1", ReportData: []byte{1, 255}}) {
		t.Errorf("got %v, error %v", e, err)
	}
	if e, err := evidence.ParseTDX([]byte(`{"cc_eventlog":null,"quote":"BAA="}`)); err != nil ||
		!cmp.Equal(e, evidence.TDXEvidence{Quote: []byte{4, 0}}) {
		t.Errorf("got %v, error %v", e, err)
	}
	long := strings.Repeat("A", 88)
	for _, bad := range []string{
		``, `null`, `[]`, `{}`, `{"svn":"1"}`, `{"svn":1,"report_data":"AA=="}`, `{"svn":"1","report_data":"secret!"}`,
		`{"svn":"1","report_data":"` + long + `"}`, `{"quote":""}`, `{"quote":7}`, `{"cc_eventlog":"AA=="}`,
		`{"x":"` + strings.Repeat("x", evidence.MaxSize) + `"}`,
	} {
		if _, err := evidence.ParseSample([]byte(bad)); !errors.Is(err, evidence.ErrMalformed) {
			t.Errorf("sample %.40q: got error %v, want malformed", bad, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows evidence: %v", err)
		}
		if _, err := evidence.ParseTDX([]byte(bad)); !errors.Is(err, evidence.ErrMalformed) {
			t.Errorf("tdx %.40q: got error %v, want malformed", bad, err)
		}
	}
}

func TestKnown(t *testing.T) {
	t.Parallel()
	if !evidence.SNP.Known() || evidence.TEE("azsnpvtpm").Known() || evidence.TEE("").Known() {
		t.Error("known names are wrong")
	}
}

func FuzzParseSample(f *testing.F) {
	f.Add([]byte(`{"svn":"1","report_data":"Af8="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := evidence.ParseSample(b)
		if err == nil && (e.SVN == "" || len(e.ReportData) == 0 || len(e.ReportData) > evidence.MaxReportData) {
			t.Errorf("%q was let through", b)
		}
	})
}

func FuzzParseTDX(f *testing.F) {
	f.Add([]byte(`{"cc_eventlog":null,"quote":"BAA="}`))
	f.Add([]byte(`{"cc_eventlog":"CQ==","quote":[4,0]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := evidence.ParseTDX(b)
		if err == nil && len(e.Quote) == 0 {
			t.Errorf("%q was let through", b)
		}
	})
}
