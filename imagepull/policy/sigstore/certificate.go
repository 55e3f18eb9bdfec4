// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Authority is a certificate authority that is trusted between Start and End
// (zero: unbounded).
type Authority struct {
	Roots, Intermediates []*x509.Certificate
	Start, End           time.Time
}

// Identity is who must have signed: what Fulcio wrote into the certificate.
// Issuer and exactly one of the others must be set.
type Identity struct {
	// Issuer is the OpenID issuer's URL.
	Issuer string
	// Email or URI is the subject, exactly; URIPrefix is how a URI begins.
	Email, URI, URIPrefix string
}

// The extensions in which Fulcio writes the issuer: bare in the first, as a
// UTF8String in the second.
func issuerExtensions() (v1, v2 asn1.ObjectIdentifier) {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
}

// verify finds a chain from the certificate to the authority, all of it valid
// at t.
func (a Authority) verify(cert *x509.Certificate, more []*x509.Certificate, t time.Time) ([][]*x509.Certificate, error) {
	if !within(t, a.Start, a.End) {
		return nil, errors.New("the authority is not trusted for that time")
	}
	return cert.Verify(x509.VerifyOptions{
		Roots:         pool(a.Roots),
		Intermediates: pool(append(slices.Clone(a.Intermediates), more...)),
		CurrentTime:   t,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func (id Identity) verify(cert *x509.Certificate) error {
	issuer, err := issuerOf(cert)
	if err != nil {
		return err
	}
	if issuer != id.Issuer {
		return fmt.Errorf("signed under the OpenID issuer %q, not %q", clip(issuer), id.Issuer)
	}
	uris := make([]string, len(cert.URIs))
	for i, u := range cert.URIs {
		uris[i] = u.String()
	}
	var good bool
	switch {
	case id.Email != "":
		good = slices.Contains(cert.EmailAddresses, id.Email)
	case id.URI != "":
		good = slices.Contains(uris, id.URI)
	case id.URIPrefix != "":
		good = slices.ContainsFunc(uris, func(u string) bool { return strings.HasPrefix(u, id.URIPrefix) })
	}
	if !good {
		return fmt.Errorf("signed by %q, not by %q", clip(strings.Join(append(uris, cert.EmailAddresses...), ", ")), id.Email+id.URI+id.URIPrefix)
	}
	return nil
}

// issuerOf reads both extensions; where there are two they must agree.
func issuerOf(cert *x509.Certificate) (string, error) {
	v1, v2 := issuerExtensions()
	var found []string
	for _, x := range cert.Extensions {
		switch {
		case x.Id.Equal(v1):
			found = append(found, string(x.Value))
		case x.Id.Equal(v2):
			var s string
			if rest, err := asn1.Unmarshal(x.Value, &s); err != nil || len(rest) > 0 {
				return "", errors.New("the certificate's issuer extension cannot be read")
			}
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		return "", errors.New("the certificate names no OpenID issuer: it is not Fulcio's")
	}
	if found[0] != found[len(found)-1] {
		return "", errors.New("the certificate names two OpenID issuers")
	}
	return found[0], nil
}

// PKI is an authority of the key owner's own, with certificates that live
// long: they must be valid now.
type PKI struct {
	Roots, Intermediates []*x509.Certificate
	// Email and Hostname are the subject; at least one is set, and what is set
	// must hold.
	Email, Hostname string
}

func (p *PKI) verify(cert *x509.Certificate, more []*x509.Certificate, now time.Time) error {
	a := Authority{Roots: p.Roots, Intermediates: p.Intermediates}
	if _, err := a.verify(cert, more, now); err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	if p.Email == "" && p.Hostname == "" {
		return errors.New("no subject is required")
	}
	if p.Email != "" && !slices.Contains(cert.EmailAddresses, p.Email) {
		return fmt.Errorf("the certificate is for %q, not %q", clip(strings.Join(cert.EmailAddresses, ", ")), p.Email)
	}
	if p.Hostname != "" && cert.VerifyHostname(p.Hostname) != nil {
		return fmt.Errorf("the certificate is not for the host %q", p.Hostname)
	}
	return nil
}
