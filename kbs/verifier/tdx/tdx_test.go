// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package tdx_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs/verifier"
	"github.com/coffer-cc/coffer/kbs/verifier/tdx"
)

const (
	reportDataAt = 48 + 520 // header, then the body up to report_data
	signedSize   = 48 + 584
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "shared", "vectors", "tdx", name))
	if err == nil {
		return b
	}
	if strings.Contains(os.Getenv("REQUIRE"), "vectors") {
		t.Fatal(err)
	}
	t.Skipf("no vectors beside the repository: %v", err)
	return nil
}

func wrap(t testing.TB, quote []byte) []byte {
	t.Helper()
	b, err := json.Marshal(evidence.TDXEvidence{Quote: quote})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRealQuote(t *testing.T) {
	t.Parallel()
	quote := vector(t, "tdx_quote_4.dat")
	got, err := tdx.New(tdx.Options{}).Verify(t.Context(), wrap(t, quote), verifier.Binding{
		ReportData: quote[reportDataAt : reportDataAt+64],
		InitData:   make([]byte, 32),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"tcb_status", "collateral_expiration_status"} {
		if _, ok := got.TEE[member]; ok {
			t.Errorf("claim %s without collateral", member)
		}
	}
	// The quote's claims, in the notation of the expectation made from
	// another quote; the values that differ are left out of the comparison.
	var want map[string]any
	if err := json.Unmarshal(vector(t, "parse_tdx_claims_expected.json"), &want); err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"uefi_event_logs", "platform_instance_id", "report_data", "init_data"} {
		delete(want, member)
	}
	text, err := json.Marshal(got.TEE)
	if err != nil {
		t.Fatal(err)
	}
	var have map[string]any
	if err := json.Unmarshal(text, &have); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
}

func TestForgedQuotes(t *testing.T) {
	t.Parallel()
	quote := vector(t, "tdx_quote_4.dat")
	b := verifier.Binding{ReportData: quote[reportDataAt : reportDataAt+64]}
	v := tdx.New(tdx.Options{})
	for at := 0; at < signedSize+64+4; at += 13 {
		if at >= signedSize && at < signedSize+4 {
			continue
		}
		forged := bytes.Clone(quote)
		forged[at] ^= 1
		if _, err := v.Verify(t.Context(), wrap(t, forged), b); !errdefs.IsUnauthorized(err) && !errdefs.IsNotImplemented(err) {
			t.Errorf("byte %d flipped: %v", at, err)
		}
	}
	for _, size := range []int{0, 1, 47, 48, 631, 632, 636, 1100, 4000} {
		if _, err := v.Verify(t.Context(), wrap(t, quote[:size]), b); !errdefs.IsUnauthorized(err) {
			t.Errorf("cut to %d: %v", size, err)
		}
	}
}

func TestBindingAndVersions(t *testing.T) {
	t.Parallel()
	quote := vector(t, "tdx_quote_4.dat")
	bound := quote[reportDataAt : reportDataAt+64]
	v := tdx.New(tdx.Options{})
	_, err := v.Verify(t.Context(), wrap(t, quote), verifier.Binding{ReportData: make([]byte, 48)})
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "not bound") {
		t.Errorf("other report data: %v", err)
	}
	_, err = v.Verify(t.Context(), wrap(t, quote), verifier.Binding{ReportData: bound, InitData: bytes.Repeat([]byte{1}, 48)})
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "init-data") {
		t.Errorf("other init-data: %v", err)
	}
	if _, err := v.Verify(t.Context(), wrap(t, vector(t, "tdx_quote_5.dat")), verifier.Binding{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("version 5: %v", err)
	}
	if _, err := v.Verify(t.Context(), []byte(`{"quote":null}`), verifier.Binding{}); !errdefs.IsUnauthorized(err) {
		t.Errorf("no quote: %v", err)
	}
}

// away is a collateral service that cannot be reached.
type away struct{}

func (away) Get(string) (map[string][]string, []byte, error) {
	return nil, nil, errors.New("connection refused")
}

func (a away) GetContext(ctx context.Context, url string) (map[string][]string, []byte, error) {
	return a.Get(url)
}

func TestCollateralAway(t *testing.T) {
	t.Parallel()
	quote := vector(t, "tdx_quote_4.dat")
	v := tdx.New(tdx.Options{Collateral: true, Getter: away{}})
	_, err := v.Verify(t.Context(), wrap(t, quote), verifier.Binding{ReportData: quote[reportDataAt : reportDataAt+64]})
	if !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"cc_eventlog":null,"quote":"BAACAIEAAAA="}`))
	if b, err := os.ReadFile("../../../../shared/vectors/tdx/tdx_quote_4.dat"); err == nil {
		f.Add(wrap(f, b))
	}
	v := tdx.New(tdx.Options{})
	f.Fuzz(func(t *testing.T, e []byte) {
		if _, err := v.Verify(t.Context(), e, verifier.Binding{ReportData: []byte("never")}); err == nil {
			t.Error("accepted")
		}
	})
}
