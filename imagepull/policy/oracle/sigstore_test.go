// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
	"github.com/coffer-cc/coffer/imagepull/policy/sigstore/sigstoretest"
)

const (
	issuer = "https://issuer.test"
	email  = "dev@example.test"
)

// judges are both implementations, with the same trust.
type judges struct {
	trust    *sigstore.Trust
	verifier *verify.Verifier
	policy   func(artifact []byte) verify.PolicyBuilder
}

func newJudges(t *testing.T, i *sigstoretest.Instance) judges {
	t.Helper()
	ours, err := sigstore.ParseRoot(i.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := root.NewTrustedRootFromJSON(i.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.NewVerifier(theirs, verify.WithSignedCertificateTimestamps(1), verify.WithTransparencyLog(1), verify.WithObserverTimestamps(1))
	if err != nil {
		t.Fatal(err)
	}
	id, err := verify.NewShortCertificateIdentity(issuer, "", email, "")
	if err != nil {
		t.Fatal(err)
	}
	return judges{
		trust: &sigstore.Trust{
			Fulcio: &sigstore.Fulcio{Authorities: ours.Fulcio, CT: ours.CT, Identity: sigstore.Identity{Issuer: issuer, Email: email}},
			Rekor:  ours.Rekor, Timestamp: ours.Timestamp,
		},
		verifier: v,
		policy: func(artifact []byte) verify.PolicyBuilder {
			if artifact == nil {
				return verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithCertificateIdentity(id))
			}
			return verify.NewPolicy(verify.WithArtifact(bytes.NewReader(artifact)), verify.WithCertificateIdentity(id))
		},
	}
}

func (j judges) ours(b, artifact []byte) error {
	s, err := sigstore.ParseBundle(b)
	if err != nil {
		return err
	}
	if s.Message == nil {
		s.Message = artifact
	}
	return j.trust.Verify(s)
}

func (j judges) theirs(b, artifact []byte) error {
	var e bundle.Bundle
	if err := e.UnmarshalJSON(b); err != nil {
		return err
	}
	_, err := j.verifier.Verify(&e, j.policy(artifact))
	return err
}

// TestSigstoreGo: the same bundles are good.
func TestSigstoreGo(t *testing.T) {
	t.Parallel()
	i := sigstoretest.New(t)
	j := newJudges(t, i)
	at := time.Now().Add(-24 * time.Hour)
	artifact := []byte("an artifact")
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible
	id := sigstoretest.Identity{Issuer: issuer, Email: email, From: at.Add(-time.Minute)}
	accepted, unlike := 0, 0
	for name, c := range map[string]struct {
		change func(*sigstoretest.Identity)
		late   time.Duration
	}{
		"good":           {},
		"late":           {late: time.Hour},
		"early":          {late: -time.Hour},
		"another":        {change: func(id *sigstoretest.Identity) { id.Email = "eve@example.test" }},
		"another issuer": {change: func(id *sigstoretest.Identity) { id.Issuer = "https://other.test" }},
		"no SCT":         {change: func(id *sigstoretest.Identity) { id.NoSCT = true }},
	} {
		who := id
		if c.change != nil {
			c.change(&who)
		}
		cert, key := i.Certificate(who)
		for _, parts := range []sigstoretest.Parts{
			{}, {Promise: true}, {Proof: true}, {Timestamp: true}, {Promise: true, Proof: true}, {Proof: true, Timestamp: true}, {Promise: true, Proof: true, Timestamp: true},
		} {
			message := i.SignMessage(artifact, cert, key, at.Add(c.late))
			statement := i.SignStatement(sigstore.PredicateCosignSign, "", strings.Repeat("ab", 32), cert, key, at.Add(c.late))
			for _, b := range [][]byte{i.Bundle(message, parts), i.Bundle(statement, parts)} {
				a := artifact
				if bytes.Contains(b, []byte("dsseEnvelope")) {
					a = nil
				}
				ours, theirs := j.ours(b, a), j.theirs(b, a)
				if (ours == nil) != (theirs == nil) {
					t.Errorf("%s %+v: %v here, %v there", name, parts, ours, theirs)
				}
				if ours != nil {
					continue
				}
				accepted++
				unlike += j.mutate(t, random, b, a)
			}
		}
	}
	if accepted < 6 {
		t.Errorf("%d good bundles", accepted)
	}
	t.Logf("%d good bundles, %d changed ones good here and not there, with the same content", accepted, unlike)
}

// mutate flips bits. sigstore-go also refuses what is wrong in parts that
// nobody signed and that are not needed: the root's hash beside the signed
// one, spelling of names. What was signed must be the same.
func (j judges) mutate(t *testing.T, random *rand.Rand, b, artifact []byte) (unlike int) {
	t.Helper()
	good, err := sigstore.ParseBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		m := bytes.Clone(b)
		m[random.IntN(len(m))] ^= 1 << random.IntN(7)
		if j.ours(m, artifact) != nil || j.theirs(m, artifact) == nil {
			continue
		}
		unlike++
		s, err := sigstore.ParseBundle(m)
		if err != nil || !bytes.Equal(s.Message, good.Message) {
			t.Errorf("another message is good here: %s", m)
		}
	}
	return unlike
}
