// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containerd/errdefs"
)

// signedBy holds for images with a simple signature by one of its keys.
type signedBy struct {
	keys     []material
	identity identity
}

func (*signedBy) kind() string            { return "signedBy" }
func (r *signedBy) materials() []material { return r.keys }

func parseSignedBy(f *fields) *signedBy {
	r := &signedBy{}
	switch t := f.text("keyType"); t {
	case "GPGKeys":
	case "":
		f.fail("keyType", "missing")
	default:
		f.fail("keyType", "%q is not supported: use GPGKeys", clip(t, 100))
	}
	r.keys = parseMaterial(f, "key", func(b []byte) error {
		_, err := parseKeyring(b)
		return err
	}, "Path", "Paths", "Data")
	if len(r.keys) == 0 {
		f.fail("", "no key: give keyPath, keyPaths or keyData")
	}
	r.identity = parseIdentity(f, false)
	return r
}

// parseKeyring reads OpenPGP public keys, binary or in armor.
func parseKeyring(b []byte) (openpgp.EntityList, error) {
	keys, err := openpgp.ReadKeyRing(bytes.NewReader(b))
	if err != nil {
		keys, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
	}
	if err != nil || len(keys) == 0 {
		return nil, errors.New("no OpenPGP public key can be read")
	}
	return keys, nil
}

func (r *signedBy) check(ctx context.Context, e *evaluation) error {
	rings, err := loadAll(ctx, e.docs, r.keys, parseKeyring)
	if err != nil {
		return err
	}
	keys := slices.Concat(rings...)
	signatures, incomplete := e.storedSignatures(ctx)
	var why reasons
	for _, s := range signatures {
		if err := r.accept(e, keys, s); err != nil {
			why.add(s.where, err)
			continue
		}
		return nil
	}
	if incomplete != nil {
		if !errdefs.IsPermissionDenied(incomplete) || why.total == 0 {
			return incomplete
		}
		why.add("signature store", errors.New(incomplete.why))
	}
	return why.refuse("the image has no signature", "sign it, and publish the signature where the stores are configured to be")
}

// accept checks one signature to its end.
func (r *signedBy) accept(e *evaluation, keys openpgp.EntityList, s stored) error {
	content, err := openSignature(keys, s.bytes, e.now)
	if err != nil {
		return err
	}
	p, err := parsePayload(content, payloadSimple)
	if err != nil {
		return err
	}
	if !e.image.has(p.digest) {
		return fmt.Errorf("it is for %s", p.digest)
	}
	return r.identity.check(e.image.name, p.reference)
}

// openSignature returns what one of the keys signed.
func openSignature(keys openpgp.EntityList, signature []byte, now func() time.Time) ([]byte, error) {
	if len(signature) > maxSignature {
		return nil, fmt.Errorf("longer than %d bytes", maxSignature)
	}
	flat, err := flatten(signature)
	if err != nil {
		return nil, fmt.Errorf("not a signed OpenPGP message: %w", err)
	}
	m, err := openpgp.ReadMessage(bytes.NewReader(flat), keys, nil, &packet.Config{Time: now})
	if err != nil {
		return nil, fmt.Errorf("not an OpenPGP message: %w", err)
	}
	// The verdict stands after the last byte.
	content, err := io.ReadAll(io.LimitReader(m.UnverifiedBody, maxSignature+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the OpenPGP message breaks off: %w", err)
	case len(content) > maxSignature:
		return nil, fmt.Errorf("signs more than %d bytes", maxSignature)
	case !m.IsSigned:
		return nil, errors.New("an OpenPGP message without a signature")
	case m.IsEncrypted:
		return nil, errors.New("an encrypted OpenPGP message")
	case m.SignedBy == nil:
		return nil, fmt.Errorf("not signed by a trusted key but by %016X", m.SignedByKeyId)
	case m.SignatureError != nil:
		return nil, fmt.Errorf("the signature does not hold: %w", m.SignatureError)
	case m.Signature == nil:
		return nil, errors.New("the signature was not checked")
	}
	switch m.Signature.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		return content, nil
	}
	return nil, fmt.Errorf("signed with the hash %v: use SHA-256 or longer", m.Signature.Hash)
}
