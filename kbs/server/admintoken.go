// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
)

// IssueAdminToken makes a token with which its holder administers a service
// that knows the public half of key, from now until now plus ttl. A ttl
// beyond MaxAdminToken is errdefs.ErrInvalidArgument. The token is a secret.
func IssueAdminToken(key ed25519.PrivateKey, now time.Time, ttl time.Duration) (string, error) {
	if ttl <= 0 || ttl > MaxAdminToken {
		return "", fmt.Errorf("administrator's token: lifetime %s is not between 0 and %s: %w", ttl, MaxAdminToken, errdefs.ErrInvalidArgument)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("administrator's token: %w", err)
	}
	payload, err := json.Marshal(adminClaims{
		Subject: "admin", Role: "admin",
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(ttl).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("administrator's token: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("administrator's token: %w", err)
	}
	return signed.CompactSerialize()
}
