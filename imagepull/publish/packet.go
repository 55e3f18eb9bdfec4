// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"unicode"

	"github.com/coffer-cc/coffer/cdh/keywrap"
	"github.com/coffer-cc/coffer/imagepull/layercrypt"
)

// inspectPacket says for whom a packet is wrapped. The report is valid, if
// short, also beside an error.
func inspectPacket(packet layercrypt.KeyPacket) (RecipientReport, error) {
	report := RecipientReport{Scheme: printable(packet.Scheme), Count: 1}
	var err error
	switch packet.Scheme {
	case keywrap.Scheme:
		err = report.readKBS(packet.Data)
	case "jwe":
		err = report.readJWE(packet.Data)
	case "pkcs7":
		err = report.readPKCS7(packet.Data)
	}
	return report, err
}

func (r *RecipientReport) readKBS(data []byte) error {
	packet, err := keywrap.ParsePacket(data)
	if err != nil {
		return err
	}
	r.Scheme = packet.Provider()
	r.KeyIDs = []string{packet.KID()}
	r.Algorithm = packet.WrapType()
	return nil
}

// joseHeader has the members of RFC 7516 that name keys.
type joseHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

// jsonJWE is the general and the flattened JSON serialisation of RFC 7516 §7.2.
type jsonJWE struct {
	Protected   string     `json:"protected"`
	Unprotected joseHeader `json:"unprotected"`
	Header      joseHeader `json:"header"`
	Recipients  []struct {
		Header joseHeader `json:"header"`
	} `json:"recipients"`
}

var errJWE = errors.New("not a JSON Web Encryption")

func (r *RecipientReport) readJWE(data []byte) error {
	var message jsonJWE
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		if json.Unmarshal(data, &message) != nil {
			return errJWE
		}
	} else {
		parts := strings.Split(string(data), ".")
		if len(parts) != 5 {
			return errJWE
		}
		message.Protected = parts[0]
	}
	protected, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(message.Protected, "="))
	if err != nil {
		return errJWE
	}
	var shared joseHeader
	if len(protected) > 0 && json.Unmarshal(protected, &shared) != nil {
		return errJWE
	}
	headers := []joseHeader{message.Header}
	if len(message.Recipients) > 0 {
		headers = headers[:0]
		for _, recipient := range message.Recipients {
			headers = append(headers, recipient.Header)
		}
	}
	r.Count = len(headers)
	var algorithms []string
	for _, header := range headers {
		if alg := first(header.Algorithm, message.Unprotected.Algorithm, shared.Algorithm); alg != "" && !slices.Contains(algorithms, alg) {
			algorithms = append(algorithms, alg)
		}
		if kid := first(header.KeyID, message.Unprotected.KeyID, shared.KeyID); kid != "" {
			r.KeyIDs = append(r.KeyIDs, kid)
		}
	}
	r.Algorithm = strings.Join(algorithms, ",")
	if r.Algorithm == "" {
		return errJWE
	}
	return nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return printable(v)
		}
	}
	return ""
}

// contentInfo, envelopedData and recipientInfo are the parts of RFC 2315 §10
// that name the recipients.
type contentInfo struct {
	ContentType asn1.ObjectIdentifier
	Content     asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type envelopedData struct {
	Version    int
	Recipients []recipientInfo `asn1:"set"`
	Content    asn1.RawValue
}

type recipientInfo struct {
	Version   int
	ID        issuerAndSerial
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

func (r *RecipientReport) readPKCS7(data []byte) error {
	var info contentInfo
	if _, err := asn1.Unmarshal(data, &info); err != nil {
		return fmt.Errorf("not PKCS#7: %w", err)
	}
	var envelope envelopedData
	if _, err := asn1.Unmarshal(info.Content.Bytes, &envelope); err != nil {
		return fmt.Errorf("not PKCS#7 enveloped data: %w", err)
	}
	r.Count = len(envelope.Recipients)
	for _, recipient := range envelope.Recipients {
		var names pkix.RDNSequence
		if _, err := asn1.Unmarshal(recipient.ID.Issuer.FullBytes, &names); err != nil {
			return fmt.Errorf("issuer of a recipient: %w", err)
		}
		r.KeyIDs = append(r.KeyIDs, printable(fmt.Sprintf("%s serial %x", names, recipient.ID.Serial)))
	}
	return nil
}

// printable makes a text of the registry's harmless for a terminal.
func printable(s string) string {
	const longest = 1024
	if len(s) > longest {
		s = s[:longest]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s, "?"))
}
