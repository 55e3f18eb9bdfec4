// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// publicGood is the trusted root of the public sigstore instance: see
// public-good.json.license for its origin.
//
//go:embed public-good.json
var publicGood []byte

// Root is sigstore's trusted root: the keys of everybody who takes part.
type Root struct {
	Fulcio, Timestamp []Authority
	Rekor, CT         []Log
}

type wirePeriod struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

type wireLog struct {
	BaseURL   string `json:"baseUrl"`
	PublicKey struct {
		RawBytes []byte     `json:"rawBytes"`
		ValidFor wirePeriod `json:"validFor"`
	} `json:"publicKey"`
	LogID struct {
		KeyID []byte `json:"keyId"`
	} `json:"logId"`
}

type wireAuthority struct {
	CertChain struct {
		Certificates []wireRaw `json:"certificates"`
	} `json:"certChain"`
	ValidFor wirePeriod `json:"validFor"`
}

type wireRoot struct {
	MediaType    string          `json:"mediaType"`
	Tlogs        []wireLog       `json:"tlogs"`
	CTLogs       []wireLog       `json:"ctlogs"`
	Fulcio       []wireAuthority `json:"certificateAuthorities"`
	Timestampers []wireAuthority `json:"timestampAuthorities"`
}

// PublicGood is the root of the public sigstore instance as it was when this
// program was built. It is not refreshed: a program that must know of later
// keys is given a trusted_root.json.
func PublicGood() (*Root, error) { return ParseRoot(publicGood) }

// ParseRoot reads a trusted_root.json. Keys that are not supported are errors,
// not left out.
func ParseRoot(b []byte) (*Root, error) {
	var w wireRoot
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, errors.New("not a sigstore trusted root of the JSON form")
	}
	if !strings.HasPrefix(w.MediaType, "application/vnd.dev.sigstore.trustedroot") {
		return nil, fmt.Errorf("not a sigstore trusted root but %q", clip(w.MediaType))
	}
	r := &Root{}
	var err error
	for _, part := range []struct {
		name string
		in   []wireLog
		out  *[]Log
	}{{"tlogs", w.Tlogs, &r.Rekor}, {"ctlogs", w.CTLogs, &r.CT}} {
		for i, l := range part.in {
			log, err := l.log()
			if err != nil {
				return nil, fmt.Errorf("sigstore trusted root: %s[%d]: %w", part.name, i, err)
			}
			*part.out = append(*part.out, log)
		}
	}
	if r.Fulcio, err = authorities("certificateAuthorities", w.Fulcio); err != nil {
		return nil, err
	}
	if r.Timestamp, err = authorities("timestampAuthorities", w.Timestampers); err != nil {
		return nil, err
	}
	return r, nil
}

func (w wireLog) log() (Log, error) {
	l := Log{ID: w.LogID.KeyID, Start: w.PublicKey.ValidFor.Start, End: w.PublicKey.ValidFor.End}
	u, err := url.Parse(w.BaseURL)
	if err != nil || len(l.ID) == 0 || l.Start.IsZero() {
		return l, errors.New("no base URL, log id or start of its validity")
	}
	l.Origin = u.Host
	if l.Key, err = x509.ParsePKIXPublicKey(w.PublicKey.RawBytes); err != nil {
		l.Key, err = x509.ParsePKCS1PublicKey(w.PublicKey.RawBytes)
	}
	if err != nil {
		return l, errors.New("the public key cannot be read")
	}
	return l, checkKey(l.Key)
}

// authorities reads chains: the last certificate is the root.
func authorities(name string, in []wireAuthority) ([]Authority, error) {
	var out []Authority
	for i, w := range in {
		a := Authority{Start: w.ValidFor.Start, End: w.ValidFor.End}
		for _, raw := range w.CertChain.Certificates {
			c, err := x509.ParseCertificate(raw.RawBytes)
			if err != nil {
				return nil, fmt.Errorf("sigstore trusted root: %s[%d]: a certificate cannot be read", name, i)
			}
			a.Intermediates = append(a.Intermediates, c)
		}
		n := len(a.Intermediates)
		if n == 0 {
			return nil, fmt.Errorf("sigstore trusted root: %s[%d]: no certificate", name, i)
		}
		a.Roots, a.Intermediates = a.Intermediates[n-1:], a.Intermediates[:n-1]
		out = append(out, a)
	}
	return out, nil
}
