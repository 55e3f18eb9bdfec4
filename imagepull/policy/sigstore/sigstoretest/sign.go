// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstoretest

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Signed is something that was signed, and by whom; the rest of what goes into
// a signature is made from it.
type Signed struct {
	Message, Signature []byte
	Cert               *x509.Certificate // nil: signed with a bare key
	Key                *ecdsa.PrivateKey
	At                 time.Time // when Rekor or the timestamp authority saw it
	// PayloadType is set where the message is a DSSE encoding of Payload.
	PayloadType string
	Payload     []byte
}

// SignMessage signs message; cert may be nil.
func (i *Instance) SignMessage(message []byte, cert *x509.Certificate, key *ecdsa.PrivateKey, at time.Time) *Signed {
	i.tb.Helper()
	return &Signed{Message: message, Signature: Sign(i.tb, key, message), Cert: cert, Key: key, At: at}
}

// SignStatement signs an in-toto statement in an envelope.
func (i *Instance) SignStatement(predicate, name, sha string, cert *x509.Certificate, key *ecdsa.PrivateKey, at time.Time) *Signed {
	i.tb.Helper()
	subject := map[string]any{"digest": map[string]string{"sha256": sha}}
	if name != "" {
		subject["name"] = name
	}
	payload, err := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": map[string]any{},
		"subject": []any{subject},
	})
	i.must(err)
	const payloadType = "application/vnd.in-toto+json"
	s := i.SignMessage(append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...), cert, key, at)
	s.PayloadType, s.Payload = payloadType, payload
	return s
}

func (i *Instance) verifierPEM(s *Signed) []byte {
	if s.Cert != nil {
		return CertPEM(s.Cert)
	}
	return PublicPEM(i.tb, s.Key)
}

// Body is Rekor's entry about s.
func (i *Instance) Body(s *Signed) (kind string, body []byte) {
	i.tb.Helper()
	hash := func(b []byte) map[string]string {
		d := sha256.Sum256(b)
		return map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(d[:])}
	}
	entry := map[string]any{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
		"data":      map[string]any{"hash": hash(s.Message)},
		"signature": map[string]any{"content": s.Signature, "publicKey": map[string]any{"content": i.verifierPEM(s)}},
	}}
	if s.Payload != nil {
		entry["kind"] = "dsse"
		entry["spec"] = map[string]any{
			"envelopeHash": hash(s.Message), "payloadHash": hash(s.Payload),
			"signatures": []any{map[string]any{"signature": s.Signature, "verifier": i.verifierPEM(s)}},
		}
	}
	body, err := json.Marshal(entry)
	i.must(err)
	return entry["kind"].(string), body
}

// promised is Rekor's signature that the entry is logged.
func (i *Instance) promised(body []byte, at time.Time, index int64) []byte {
	return Sign(i.tb, i.rekorKey, fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(body), at.Unix(), KeyID(i.tb, i.rekorKey), index))
}

// Annotations is s as cosign's first form stores it; logged adds Rekor's
// promise.
func (i *Instance) Annotations(s *Signed, logged bool) map[string]string {
	i.tb.Helper()
	a := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(s.Signature)}
	if s.Cert != nil {
		a["dev.sigstore.cosign/certificate"] = string(CertPEM(s.Cert))
		a["dev.sigstore.cosign/chain"] = string(CertPEM(i.Intermediate, i.Root))
	}
	if logged {
		_, body := i.Body(s)
		b, err := json.Marshal(map[string]any{
			"SignedEntryTimestamp": i.promised(body, s.At, 7),
			"Payload": map[string]any{
				"body": body, "integratedTime": s.At.Unix(), "logIndex": 7, "logID": hex.EncodeToString(KeyID(i.tb, i.rekorKey)),
			},
		})
		i.must(err)
		a["dev.sigstore.cosign/bundle"] = string(b)
	}
	return a
}

// Parts says what a bundle carries beside the signature.
type Parts struct {
	Promise, Proof, Timestamp bool
}

// Bundle is s as a sigstore bundle, version 0.3. Where Digest of a message
// signature matters, it is that of the message.
func (i *Instance) Bundle(s *Signed, p Parts) []byte {
	i.tb.Helper()
	material := map[string]any{}
	if s.Cert != nil {
		material["certificate"] = map[string]any{"rawBytes": s.Cert.Raw}
	} else {
		material["publicKey"] = map[string]any{"hint": "test"}
	}
	if p.Promise || p.Proof {
		material["tlogEntries"] = []any{i.entry(s, p)}
	}
	if p.Timestamp {
		material["timestampVerificationData"] = map[string]any{
			"rfc3161Timestamps": []any{map[string]any{"signedTimestamp": i.Timestamp(s.Signature, s.At)}},
		}
	}
	bundle := map[string]any{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": material}
	if s.Payload != nil {
		bundle["dsseEnvelope"] = map[string]any{
			"payload": s.Payload, "payloadType": s.PayloadType, "signatures": []any{map[string]any{"sig": s.Signature}},
		}
	} else {
		d := sha256.Sum256(s.Message)
		bundle["messageSignature"] = map[string]any{
			"messageDigest": map[string]any{"algorithm": "SHA2_256", "digest": d[:]}, "signature": s.Signature,
		}
	}
	out, err := json.Marshal(bundle)
	i.must(err)
	return out
}

func (i *Instance) entry(s *Signed, p Parts) map[string]any {
	i.tb.Helper()
	kind, body := i.Body(s)
	e := map[string]any{
		"logIndex": "7", "logId": map[string]any{"keyId": KeyID(i.tb, i.rekorKey)},
		"kindVersion":    map[string]any{"kind": kind, "version": "0.0.1"},
		"integratedTime": strconv.FormatInt(s.At.Unix(), 10), "canonicalizedBody": body,
	}
	if p.Promise {
		e["inclusionPromise"] = map[string]any{"signedEntryTimestamp": i.promised(body, s.At, 7)}
	}
	if p.Proof {
		// A tree of two leaves, of which this is the second.
		h := rfc6962.DefaultHasher
		other := h.HashLeaf([]byte("another entry"))
		root := h.HashChildren(other, h.HashLeaf(body))
		text := "rekor.sigstore.test - 1234\n2\n" + base64.StdEncoding.EncodeToString(root) + "\n"
		signature := append(KeyID(i.tb, i.rekorKey)[:4:4], Sign(i.tb, i.rekorKey, []byte(text))...)
		e["inclusionProof"] = map[string]any{
			"logIndex": "1", "treeSize": "2", "rootHash": root, "hashes": [][]byte{other},
			"checkpoint": map[string]any{"envelope": text + "\n— rekor.sigstore.test " + base64.StdEncoding.EncodeToString(signature) + "\n"},
		}
	}
	return e
}

// Timestamp is the authority's word that it saw message.
func (i *Instance) Timestamp(message []byte, at time.Time) []byte {
	i.tb.Helper()
	return i.timestamp(message, at, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 4})
}

// Mislabelled is a Timestamp whose signed content is not said to be one.
func (i *Instance) Mislabelled(message []byte, at time.Time) []byte {
	i.tb.Helper()
	return i.timestamp(message, at, pkcs7.OIDData)
}

func (i *Instance) timestamp(message []byte, at time.Time, contentType asn1.ObjectIdentifier) []byte {
	i.tb.Helper()
	type imprint struct {
		Algorithm struct{ Algorithm asn1.ObjectIdentifier }
		Hash      []byte
	}
	d := sha256.Sum256(message)
	info := struct {
		Version int
		Policy  asn1.ObjectIdentifier
		Imprint imprint
		Serial  *big.Int
		Time    time.Time `asn1:"generalized"`
	}{Version: 1, Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, Serial: big.NewInt(42), Time: at.UTC().Truncate(time.Second)}
	info.Imprint.Algorithm.Algorithm = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	info.Imprint.Hash = d[:]
	content, err := asn1.Marshal(info)
	i.must(err)
	token, err := pkcs7.NewSignedData(content)
	i.must(err)
	token.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	token.GetSignedData().ContentInfo.ContentType = contentType
	i.must(token.AddSignerChain(i.tsa, i.tsaKey, []*x509.Certificate{i.tsaRoot}, pkcs7.SignerInfoConfig{}))
	der, err := token.Finish()
	i.must(err)
	out, err := asn1.Marshal(struct {
		Status struct{ Status int }
		Token  asn1.RawValue
	}{Token: asn1.RawValue{FullBytes: der}})
	i.must(err)
	return out
}

// TrustedRoot is the instance's trusted_root.json.
func (i *Instance) TrustedRoot() []byte {
	i.tb.Helper()
	start := map[string]string{"start": long().NotBefore.UTC().Format(time.RFC3339)}
	log := func(base string, k *ecdsa.PrivateKey) map[string]any {
		return map[string]any{
			"baseUrl": base, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": KeyID(i.tb, k)},
			"publicKey": map[string]any{"rawBytes": publicDER(i.tb, k), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": start},
		}
	}
	chain := func(uri string, certs ...*x509.Certificate) map[string]any {
		var raw []any
		for _, c := range certs {
			raw = append(raw, map[string]any{"rawBytes": c.Raw})
		}
		return map[string]any{
			"subject": map[string]string{"commonName": "test"}, "uri": uri, "validFor": start,
			"certChain": map[string]any{"certificates": raw},
		}
	}
	out, err := json.Marshal(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs":     []any{log(rekorURL, i.rekorKey)}, "ctlogs": []any{log(ctURL, i.ctKey)},
		"certificateAuthorities": []any{chain("https://fulcio.sigstore.test", i.Intermediate, i.Root)},
		"timestampAuthorities":   []any{chain(tsaURL, i.tsa, i.tsaRoot)},
	})
	i.must(err)
	return out
}
