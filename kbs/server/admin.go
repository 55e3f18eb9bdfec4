// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-cc/coffer/kbs/rcar"
)

// MaxAdminToken is the longest lifetime of an administrator's token that is
// accepted: one that leaks should not stay good for years.
const MaxAdminToken = 31 * 24 * time.Hour

// leeway allows for clocks that differ.
const leeway = time.Minute

// adminClaims are the claims of an administrator's token.
type adminClaims struct {
	Subject   string `json:"sub"`
	Role      string `json:"role"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	Expires   int64  `json:"exp"`
}

// admin lets only administrators through and audits what they did.
func (s *Server) admin(action string, next handler) handler {
	return func(w http.ResponseWriter, r *request) error {
		who, err := s.administrator(bearer(r.Request))
		if err != nil {
			s.audit(r, action, refused, "path", r.shown(), "err", err.Error())
			p := &problem{variant: "AdminAuthAccess", status: http.StatusUnauthorized, detail: "administrator's token: " + err.Error(), err: err}
			p.reason = rcar.Reason{
				Rule: "caller is an administrator", Expected: "a valid administrator's token", Got: err.Error(),
				NextStep: "make a token: coffer-kbs admin token --dir DIR",
			}
			if errors.Is(err, errRole) {
				p.status = http.StatusForbidden
			}
			return p
		}
		err = next(w, r)
		outcome := succeeded
		if err != nil {
			outcome = failed
		}
		s.audit(r, action, outcome, "subject", who, "path", r.shown())
		return err
	}
}

var errRole = errors.New("role is not admin")

// administrator returns the subject of a valid administrator's token.
func (s *Server) administrator(token string) (string, error) {
	if token == "" {
		return "", errors.New("none was sent")
	}
	if len(s.parts.AdminKeys) == 0 {
		return "", errors.New("administration is switched off; set admin.public_key_file")
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return "", errors.New("not a JWT signed with EdDSA")
	}
	payload, ok := verifyAny(jws, s.parts.AdminKeys)
	if !ok {
		return "", errors.New("signature is not by a key of admin.public_key_file")
	}
	var c adminClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return "", errors.New("claims are not as expected")
	}
	return c.Subject, c.check(s.opts.Now())
}

func verifyAny(jws *jose.JSONWebSignature, keys []ed25519.PublicKey) ([]byte, bool) {
	for _, key := range keys {
		if payload, err := jws.Verify(key); err == nil {
			return payload, true
		}
	}
	return nil, false
}

func (c adminClaims) check(now time.Time) error {
	expires, begins := time.Unix(c.Expires, 0), time.Unix(max(c.IssuedAt, c.NotBefore), 0)
	switch {
	case c.Expires == 0 || c.IssuedAt == 0:
		return errors.New("iat or exp is missing")
	case !now.Before(expires):
		return fmt.Errorf("expired at %s", expires.UTC().Format(time.RFC3339))
	case now.Add(leeway).Before(begins):
		return fmt.Errorf("not valid before %s; check the clocks", begins.UTC().Format(time.RFC3339))
	case expires.Sub(time.Unix(c.IssuedAt, 0)) > MaxAdminToken:
		return fmt.Errorf("lifetime is more than %s", MaxAdminToken)
	case c.Role != "admin":
		return errRole
	}
	return nil
}

// audit writes one line about an act. It never holds a secret.
func (s *Server) audit(r *request, action, outcome string, attrs ...any) {
	attrs = append([]any{
		"audit", true, "action", action, "outcome", outcome, "trace_id", r.trace, "remote", r.RemoteAddr,
	}, attrs...)
	s.log.InfoContext(r.Context(), "audit", attrs...)
}
