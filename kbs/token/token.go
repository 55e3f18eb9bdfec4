// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package token issues and verifies EAR attestation tokens: JWTs signed with
// ES256 that say what an attester's evidence is worth. A service verifies its
// own tokens with its own key only; a key that a token brings along is never
// trusted. Others verify with the JWKS.
package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
)

// Profile is the EAT profile of the tokens, the one that existing relying
// parties know.
const Profile = "tag:github.com,2024:confidential-containers/Trustee"

const (
	maxToken = 1 << 20
	// sampleSuffix marks the issuer of a service that takes sample evidence.
	sampleSuffix = "/sample-evidence-allowed"
)

// Options tune an Issuer.
type Options struct {
	// Issuer is the claim iss; "" is coffer-kbs.
	Issuer string
	// Lifetime is exp minus iat; 0 is 5 minutes.
	Lifetime time.Duration
	// Sample says that the service takes sample evidence. The issuer's name
	// and the claim ear.coffer.sample-allowed then say so, and a service
	// that does not take it refuses the token, although the key is the same.
	Sample bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Issuer issues and verifies tokens. It is safe for concurrent use.
type Issuer struct {
	opts   Options
	public jose.JSONWebKey
	signer jose.Signer
}

// NewIssuer returns an Issuer that signs with a P-256 key.
func NewIssuer(key *ecdsa.PrivateKey, o Options) (*Issuer, error) {
	if key == nil || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("token: signing key is not an EC key on P-256: %w", errdefs.ErrInvalidArgument)
	}
	if o.Issuer == "" {
		o.Issuer = "coffer-kbs"
	}
	if o.Sample {
		o.Issuer += sampleSuffix
	}
	if o.Lifetime <= 0 {
		o.Lifetime = 5 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	public := jose.JSONWebKey{Key: &key.PublicKey, Algorithm: string(jose.ES256), Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	header := jose.JSONWebKey{Key: &key.PublicKey, Algorithm: string(jose.ES256)}
	opts := new(jose.SignerOptions).WithType("JWT").WithHeader("jwk", header).WithHeader("kid", public.KeyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, opts)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	return &Issuer{opts: o, public: public, signer: signer}, nil
}

// Issue signs a token with these submodules and returns it and its id.
func (i *Issuer) Issue(submods map[string]any) (token, id string, err error) {
	now := i.opts.Now()
	id = rand.Text()
	claims := map[string]any{
		"eat_profile":     Profile,
		"iss":             i.opts.Issuer,
		"iat":             now.Unix(),
		"exp":             now.Add(i.opts.Lifetime).Unix(),
		"jti":             id,
		"ear.verifier-id": map[string]any{"developer": "https://github.com/coffer-cc/coffer", "build": build()},
		"submods":         submods,
	}
	if i.opts.Sample {
		claims["ear.coffer.sample-allowed"] = true
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	signed, err := i.signer.Sign(payload)
	if err != nil {
		return "", "", fmt.Errorf("token: sign: %w", err)
	}
	if token, err = signed.CompactSerialize(); err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	return token, id, nil
}

func build() string {
	version := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return "coffer-kbs " + version
}

// Verify returns the claims of a token that this Issuer issued and that has
// not expired; numbers are json.Number. Any other token is
// errdefs.ErrUnauthenticated.
func (i *Issuer) Verify(token string) (map[string]any, error) {
	claims, err := i.verify(token)
	if err != nil {
		return nil, fmt.Errorf("token: %w; attest again: %w", err, errdefs.ErrUnauthenticated)
	}
	return claims, nil
}

func (i *Issuer) verify(token string) (map[string]any, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("longer than %d bytes", maxToken)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, errors.New("not a JWT signed with ES256")
	}
	if kid := jws.Signatures[0].Protected.KeyID; kid != i.public.KeyID {
		return nil, errors.New("signed by another service or with a key that was replaced")
	}
	payload, err := jws.Verify(i.public.Key)
	if err != nil {
		return nil, errors.New("signature is wrong")
	}
	dec := json.NewDecoder(strings.NewReader(string(payload)))
	dec.UseNumber()
	var claims map[string]any
	if err := dec.Decode(&claims); err != nil {
		return nil, errors.New("claims are not a JSON object")
	}
	if iss, _ := claims["iss"].(string); iss != i.opts.Issuer {
		return nil, fmt.Errorf("issuer is %.64q, and only %q is trusted here", iss, i.opts.Issuer)
	}
	n, _ := claims["exp"].(json.Number)
	exp, err := n.Int64()
	if err != nil {
		return nil, errors.New("has no exp")
	}
	if at := time.Unix(exp, 0); !i.opts.Now().Before(at) {
		return nil, fmt.Errorf("expired at %s", at.UTC().Format(time.RFC3339))
	}
	return claims, nil
}

// JWKS is the key set that verifies the tokens.
func (i *Issuer) JWKS() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.public}})
}
