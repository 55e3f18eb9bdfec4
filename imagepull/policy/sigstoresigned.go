// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
)

// sigstoreSigned holds for images that are signed as cosign does it. Exactly
// one of keys, fulcio and pki is set.
type sigstoreSigned struct {
	keys     []material
	fulcio   *fulcio
	pki      *pki
	rekor    []material
	identity identity
}

func (*sigstoreSigned) kind() string { return "sigstoreSigned" }

func (r *sigstoreSigned) materials() []material {
	all := slices.Concat(r.keys, r.rekor)
	if r.fulcio != nil {
		all = slices.Concat(all, r.fulcio.ca, r.fulcio.root)
	}
	if r.pki != nil {
		all = slices.Concat(all, r.pki.roots, r.pki.intermediates)
	}
	return all
}

func parseSigstoreSigned(f *fields) *sigstoreSigned {
	r := &sigstoreSigned{}
	isKey := func(b []byte) error {
		_, err := sigstore.ParsePublicKey(b)
		return err
	}
	r.keys = parseMaterial(f, "key", isKey, "Path", "Paths", "Data", "Datas")
	r.rekor = parseMaterial(f, "rekorPublicKey", isKey, "Path", "Paths", "Data", "Datas")
	if n := f.get("fulcio"); n != nil {
		r.fulcio = parseFulcio(f, n)
	}
	if n := f.get("pki"); n != nil {
		r.pki = parsePKI(f, n)
	}
	switch {
	case count(len(r.keys) > 0, r.fulcio != nil, r.pki != nil) != 1:
		f.fail("", "give exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki")
	case r.fulcio != nil && r.fulcio.root == nil && !r.fulcio.publicGood && len(r.rekor) == 0:
		f.fail("", "fulcio with an authority of its own needs rekorPublicKeyPath, …Paths, …Data or …Datas")
	case r.pki != nil && len(r.rekor) > 0:
		f.fail("", "pki does not use rekorPublicKey…")
	}
	r.identity = parseIdentity(f, true)
	return r
}

func (r *sigstoreSigned) check(ctx context.Context, e *evaluation) error {
	trust, err := r.trust(ctx, e)
	if err != nil {
		return err
	}
	if e.source == nil {
		return fmt.Errorf("no registry to read signatures from: %w", errdefs.ErrFailedPrecondition)
	}
	var why reasons
	for _, s := range e.attached {
		found, err := s.candidates(ctx)
		for _, c := range found {
			failed := c.err
			if failed == nil {
				failed = r.accept(ctx, e, trust, c)
			}
			if failed == nil {
				return nil
			}
			why.add(c.where, failed)
		}
		if err != nil {
			why.unreachable(err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return why.refuse("the image has no sigstore signature", "sign it with cosign, by digest, and push the signature to the image's registry")
}

// trust loads the keys and certificates, as they are now.
func (r *sigstoreSigned) trust(ctx context.Context, e *evaluation) (*sigstore.Trust, error) {
	t := &sigstore.Trust{Now: e.now}
	var err error
	switch {
	case r.fulcio != nil:
		err = r.fulcio.load(ctx, e.docs, t)
	case r.pki != nil:
		t.PKI, err = r.pki.load(ctx, e.docs)
	default:
		t.Keys, err = loadAll(ctx, e.docs, r.keys, sigstore.ParsePublicKey)
	}
	if err != nil || len(r.rekor) == 0 {
		return t, err
	}
	logs, err := loadAll(ctx, e.docs, r.rekor, func(b []byte) (sigstore.Log, error) {
		key, err := sigstore.ParsePublicKey(b)
		return sigstore.Log{Key: crypto.PublicKey(key)}, err
	})
	t.Rekor = logs // the policy's own keys stand instead of a trusted root's
	return t, err
}

// accept checks one signature to its end: that it holds, what it is about, and
// for which name.
func (r *sigstoreSigned) accept(ctx context.Context, e *evaluation, trust *sigstore.Trust, c candidate) error {
	s := c.signature
	if s.Digest != nil {
		return r.acceptArtifact(ctx, e, trust, c)
	}
	if err := trust.Verify(s); err != nil {
		return err
	}
	if s.Envelope != nil {
		return r.acceptStatement(e, s)
	}
	p, err := parsePayload(s.Message, payloadCosign)
	if err != nil {
		return err
	}
	if !e.image.has(p.digest) {
		return fmt.Errorf("it is for %s", p.digest)
	}
	return r.identity.check(e.image.name, p.reference)
}

// notSignature is why a statement of another kind is not accepted.
func notSignature(predicate string) error {
	return fmt.Errorf("it is an attestation of type %q, not a signature", clip(predicate, 100))
}

// acceptStatement takes cosign's own statement "this is signed". Others, such
// as provenance and scan reports, do not say that an image is good.
func (r *sigstoreSigned) acceptStatement(e *evaluation, s *sigstore.Signature) error {
	st, err := s.Envelope.Statement()
	if err != nil {
		return err
	}
	if st.PredicateType != sigstore.PredicateCosignSign {
		return notSignature(st.PredicateType)
	}
	err = errors.New("it is for another image")
	for _, subject := range st.Subject {
		if e.image.has(digest.NewDigestFromEncoded(digest.SHA256, subject.Digest["sha256"])) {
			if err = r.identity.check(e.image.name, subject.Name); err == nil {
				return nil
			}
		}
	}
	return err
}

// acceptArtifact takes a bundle that signs the manifest's own bytes.
func (r *sigstoreSigned) acceptArtifact(ctx context.Context, e *evaluation, trust *sigstore.Trust, c candidate) error {
	if hex.EncodeToString(c.signature.Digest) != c.subject.Encoded() {
		return errors.New("it is for another image")
	}
	body, err := e.manifest(ctx, c.subject)
	if err != nil {
		return fmt.Errorf("the manifest it signs: %w", err)
	}
	s := *c.signature
	s.Message = body
	if err := trust.Verify(&s); err != nil {
		return err
	}
	return r.identity.check(e.image.name, "")
}

// manifest reads a manifest of the image once, and checks that it is the one
// that was asked for: a signature over its bytes is about no other.
func (e *evaluation) manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	if body, ok := e.manifests[d]; ok {
		return body, nil
	}
	body, _, err := e.source.Manifest(ctx, e.image.name.String(), d)
	if err != nil {
		return nil, err
	}
	if d != digest.FromBytes(body) {
		return nil, errors.New("the registry returned another")
	}
	e.manifests[d] = body
	return body, nil
}
