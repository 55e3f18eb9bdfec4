// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

const (
	// unknownLifetime is how long a token without a readable expiry is used.
	unknownLifetime = time.Minute
	maxLifetime     = 24 * time.Hour
	maxMargin       = 30 * time.Second
)

// session is the outcome of one handshake: a token, and the key that the
// resources got with it are encrypted to. It is immutable.
type session struct {
	token   string
	key     *ecdsa.PrivateKey
	cookies cookies
	made    time.Time // when its handshake began
	expires time.Time // a little before the token does, on the monotonic clock
}

func (s *session) fresh(now time.Time) bool { return now.Before(s.expires) }

// lifetime returns how long a token that has just arrived may be used: the
// span between its iat and exp, less a margin, so that a guest's wrong clock
// does not matter. The token is not verified: it is not for its bearer to
// judge, and a wrong guess costs one more handshake.
func lifetime(token string, now time.Time) time.Duration {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return unknownLifetime
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return unknownLifetime
	}
	var claims struct {
		Exp *float64 `json:"exp"`
		Iat *float64 `json:"iat"`
	}
	if err := json.NewDecoder(bytes.NewReader(payload)).Decode(&claims); err != nil || claims.Exp == nil {
		return unknownLifetime
	}
	from := float64(now.Unix())
	if claims.Iat != nil {
		from = *claims.Iat
	}
	seconds := min(max(*claims.Exp-from, 0), maxLifetime.Seconds())
	span := time.Duration(seconds * float64(time.Second))
	return span - min(span/10, maxMargin)
}
