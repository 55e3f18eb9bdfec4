// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// sctExtension is where a certificate carries the promises of certificate logs
// (RFC 6962, section 3.3).
func sctExtension() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}
}

// sct is a signed certificate timestamp: a log's promise to include the
// certificate.
type sct struct {
	logID      []byte
	millis     uint64
	extensions []byte
	signature  []byte
}

// verifySCT checks that one of the logs promised to hold the certificate. The
// chains are those found for it: the issuer is part of what is signed.
func verifySCT(chains [][]*x509.Certificate, logs []Log) error {
	leaf := chains[0][0]
	promises, err := sctsOf(leaf)
	if err != nil {
		return err
	}
	tbs, err := withoutSCTs(leaf.RawTBSCertificate)
	if err != nil {
		return err
	}
	for _, p := range promises {
		for _, l := range logs {
			if !bytes.Equal(p.logID, l.ID) || !l.covers(time.UnixMilli(int64(p.millis))) {
				continue
			}
			for _, chain := range chains {
				if len(chain) > 1 && verifyBlob(l.Key, p.signed(tbs, chain[1]), p.signature) == nil {
					return nil
				}
			}
		}
	}
	return errors.New("the certificate is in no trusted certificate log")
}

// signed is the structure that the log signs for a precertificate.
func (p sct) signed(tbs []byte, issuer *x509.Certificate) []byte {
	var b cryptobyte.Builder
	b.AddUint8(0) // version 1
	b.AddUint8(0) // certificate timestamp
	b.AddUint64(p.millis)
	b.AddUint16(1) // precertificate entry
	hash := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	b.AddBytes(hash[:])
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(tbs) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(p.extensions) })
	out, err := b.Bytes()
	if err != nil {
		return nil // a certificate of 16 MB; no signature fits
	}
	return out
}

func sctsOf(cert *x509.Certificate) ([]sct, error) {
	malformed := errors.New("the certificate's log promises cannot be read")
	i := slices.IndexFunc(cert.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(sctExtension()) })
	if i < 0 {
		return nil, errors.New("the certificate carries no promise of a certificate log")
	}
	var octets, list cryptobyte.String
	value := cryptobyte.String(cert.Extensions[i].Value)
	if !value.ReadASN1(&octets, cbasn1.OCTET_STRING) || !value.Empty() || !octets.ReadUint16LengthPrefixed(&list) || !octets.Empty() {
		return nil, malformed
	}
	var out []sct
	for !list.Empty() {
		var one, extensions, signature cryptobyte.String
		var version, hash, algorithm uint8
		var p sct
		if !list.ReadUint16LengthPrefixed(&one) || len(out) == maxEntries {
			return nil, malformed
		}
		if !one.ReadUint8(&version) || version != 0 {
			continue // of a later version
		}
		if !one.ReadBytes(&p.logID, sha256.Size) || !one.ReadUint64(&p.millis) || !one.ReadUint16LengthPrefixed(&extensions) ||
			!one.ReadUint8(&hash) || !one.ReadUint8(&algorithm) || !one.ReadUint16LengthPrefixed(&signature) || !one.Empty() {
			return nil, malformed
		}
		const sha256Hash = 4 // RFC 5246, section 7.4.1.4.1
		if hash != sha256Hash {
			continue
		}
		p.extensions, p.signature = extensions, signature
		out = append(out, p)
	}
	return out, nil
}

// withoutSCTs is the certificate's signed part as the log saw it, before the
// promises were put in.
func withoutSCTs(tbs []byte) ([]byte, error) {
	malformed := errors.New("the certificate cannot be taken apart")
	extensionsTag := cbasn1.Tag(3).Constructed().ContextSpecific()
	in := cryptobyte.String(tbs)
	var fields cryptobyte.String
	if !in.ReadASN1(&fields, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, malformed
	}
	var out cryptobyte.Builder
	ok := true
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for ok && !fields.Empty() {
			var element cryptobyte.String
			var tag cbasn1.Tag
			if ok = fields.ReadAnyASN1Element(&element, &tag); !ok || tag != extensionsTag {
				b.AddBytes(element)
				continue
			}
			var inner, list cryptobyte.String
			ok = element.ReadASN1(&inner, extensionsTag) && inner.ReadASN1(&list, cbasn1.SEQUENCE) && inner.Empty()
			b.AddASN1(extensionsTag, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { ok = ok && copyExtensions(b, list) })
			})
		}
	})
	b, err := out.Bytes()
	if err != nil || !ok {
		return nil, malformed
	}
	return b, nil
}

func copyExtensions(b *cryptobyte.Builder, list cryptobyte.String) bool {
	for !list.Empty() {
		var element, fields cryptobyte.String
		var id asn1.ObjectIdentifier
		if !list.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return false
		}
		inner := element
		if !inner.ReadASN1(&fields, cbasn1.SEQUENCE) || !fields.ReadASN1ObjectIdentifier(&id) {
			return false
		}
		if !id.Equal(sctExtension()) {
			b.AddBytes(element)
		}
	}
	return true
}
