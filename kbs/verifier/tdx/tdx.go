// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package tdx verifies Intel TDX quotes of version 4: the signature of the
// quote, its quoting enclave's report and the certificate chain up to Intel's
// root, and that the quote is bound to the request.
//
// Limits. Without Options.Collateral nothing is asked of Intel, so that no
// tcb_status claim is made and the default attestation policy denies; with
// it, a platform whose TCB is not up to date is refused rather than reported.
// Quotes of version 5 are not implemented. An event log is not evaluated and
// yields no claims, so that policies go by the runtime registers alone.
package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/abi"
	tdxverify "github.com/google/go-tdx-guest/verify"
	"github.com/google/go-tdx-guest/verify/trust"

	"github.com/coffer-cc/coffer/attester/evidence"
	"github.com/coffer-cc/coffer/kbs/verifier"
)

// intelRoot is the certificate of Intel's SGX root CA, in PEM.
//
//go:embed intel-sgx-root-ca.pem
var intelRoot []byte

// Options tune a Verifier. The zero value talks to nobody.
type Options struct {
	// Collateral asks Intel's certification service for TCB information,
	// the quoting enclave's identity and revocation lists.
	Collateral bool
	// Getter fetches collateral; nil is go-tdx-guest's HTTPS client with
	// retries.
	Getter trust.HTTPSGetter
}

// Verifier implements verifier.Verifier.
type Verifier struct {
	opts  Options
	roots *x509.CertPool
}

// New returns a Verifier that trusts Intel's root.
func New(o Options) *Verifier {
	if o.Getter == nil {
		o.Getter = trust.DefaultHTTPSGetter()
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(intelRoot)
	return &Verifier{opts: o, roots: roots}
}

// Verify implements verifier.Verifier.
func (v *Verifier) Verify(ctx context.Context, raw []byte, b verifier.Binding) (verifier.Claims, error) {
	e, err := evidence.ParseTDX(raw)
	if err != nil {
		return verifier.Claims{}, fmt.Errorf("tdx evidence: %w: %w", errdefs.ErrUnauthenticated, err)
	}
	if err := v.signature(ctx, e.Quote); err != nil {
		return verifier.Claims{}, fmt.Errorf("tdx quote: %w", err)
	}
	q, err := parse(e.Quote)
	if err != nil {
		return verifier.Claims{}, fmt.Errorf("tdx quote: %w: %w", errdefs.ErrUnauthenticated, err)
	}
	if err := q.bound(b); err != nil {
		return verifier.Claims{}, fmt.Errorf("tdx quote: %w: %w", errdefs.ErrUnauthenticated, err)
	}
	return v.claims(q), nil
}

// signature checks the quote against Intel's root.
func (v *Verifier) signature(ctx context.Context, quote []byte) error {
	if len(quote) >= 2 && binary.LittleEndian.Uint16(quote) == 5 {
		return fmt.Errorf("version 5 is not supported; version 4 is: %w", errdefs.ErrNotImplemented)
	}
	parsed, err := abi.QuoteToProto(quote)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnauthenticated, err)
	}
	getter := &watchedGetter{inner: v.opts.Getter}
	opts := tdxverify.DefaultOptions()
	opts.GetCollateral, opts.CheckRevocations = v.opts.Collateral, v.opts.Collateral
	opts.Getter, opts.TrustedRoots = getter, v.roots
	err = tdxverify.TdxQuoteContext(ctx, parsed, opts)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil, getter.failed:
		return fmt.Errorf("collateral could not be had from Intel: %w: %w", errdefs.ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", errdefs.ErrUnauthenticated, err)
	}
}

// watchedGetter remembers that a fetch failed: the library's errors do not
// tell that from a bad quote.
type watchedGetter struct {
	inner  trust.HTTPSGetter
	failed bool
}

func (g *watchedGetter) Get(url string) (map[string][]string, []byte, error) {
	return g.GetContext(context.Background(), url)
}

func (g *watchedGetter) GetContext(ctx context.Context, url string) (map[string][]string, []byte, error) {
	header, body, err := trust.GetWith(ctx, g.inner, url)
	g.failed = g.failed || err != nil
	return header, body, err
}

// quote is a verified quote, field by field in the order of its bytes.
type quote struct{ header, body map[string][]byte }

// field is a name and a size in bytes.
type field struct {
	name string
	size int
}

func headerFields() []field {
	return []field{{"version", 2}, {"att_key_type", 2}, {"tee_type", 4}, {"reserved", 4}, {"vendor_id", 16}, {"user_data", 20}}
}

func bodyFields() []field {
	return []field{
		{"tcb_svn", 16}, {"mr_seam", 48}, {"mrsigner_seam", 48}, {"seam_attributes", 8}, {"td_attributes", 8}, {"xfam", 8},
		{"mr_td", 48}, {"mr_config_id", 48}, {"mr_owner", 48}, {"mr_owner_config", 48},
		{"rtmr_0", 48}, {"rtmr_1", 48}, {"rtmr_2", 48}, {"rtmr_3", 48}, {"report_data", 64},
	}
}

func parse(b []byte) (quote, error) {
	header, b, err := cut(b, headerFields())
	if err != nil {
		return quote{}, err
	}
	body, _, err := cut(b, bodyFields())
	return quote{header: header, body: body}, err
}

func cut(b []byte, fields []field) (map[string][]byte, []byte, error) {
	out := make(map[string][]byte, len(fields))
	for _, f := range fields {
		if len(b) < f.size {
			return nil, nil, errors.New("shorter than its header and body")
		}
		out[f.name], b = b[:f.size], b[f.size:]
	}
	return out, b, nil
}

func (q quote) bound(b verifier.Binding) error {
	if !bytes.Equal(q.body["report_data"], sized(b.ReportData, 64)) {
		return errors.New("report_data is not bound to this nonce and tee-pubkey")
	}
	if b.InitData != nil && !bytes.Equal(q.body["mr_config_id"], sized(b.InitData, 48)) {
		return errors.New("mr_config_id is not the digest of the init-data sent")
	}
	return nil
}

// sized pads with zeros or cuts to n bytes, as TEEs do with report data.
func sized(b []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, b)
	return out
}

func (v *Verifier) claims(q quote) verifier.Claims {
	attributes := binary.LittleEndian.Uint64(q.body["td_attributes"])
	bit := func(n uint) bool { return attributes>>n&1 == 1 }
	tee := map[string]any{
		"quote": map[string]any{"header": hexed(q.header), "body": hexed(q.body)},
		"td_attributes": map[string]any{
			"debug": bit(0), "septve_disable": bit(28), "protection_keys": bit(30), "key_locker": bit(31), "perfmon": bit(63),
		},
	}
	if v.opts.Collateral { // a worse status did not get here
		tee["tcb_status"], tee["collateral_expiration_status"] = "UpToDate", "0"
	}
	return verifier.Claims{
		TEE:        tee,
		ReportData: hex.EncodeToString(q.body["report_data"]),
		InitData:   hex.EncodeToString(q.body["mr_config_id"]),
	}
}

func hexed(fields map[string][]byte) map[string]any {
	out := make(map[string]any, len(fields))
	for name, b := range fields {
		out[name] = hex.EncodeToString(b)
	}
	return out
}
