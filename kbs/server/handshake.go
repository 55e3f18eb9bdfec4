// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/coffer-cc/coffer/kbs/rcar"
)

// auth answers a Request with a Challenge and opens a session.
func (s *Server) auth(w http.ResponseWriter, r *request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fromClass("SerdeError", readError(err))
	}
	req, err := rcar.ParseRequest(body)
	if err != nil {
		return badRequest("SerdeError", "%v", err)
	}
	if !spoken(req.Version) {
		return &problem{
			status: http.StatusBadRequest, variant: "AttestationError",
			detail: fmt.Sprintf("KBS Client Protocol Version Mismatch: expect 0.2 to 0.4 while the request is %.64s", req.Version),
			reason: rcar.Reason{
				Rule: "protocol version is spoken", Expected: "0.2 to 0.4", Got: req.Version,
				NextStep: "update the older of guest and service",
			},
		}
	}
	if err := s.parts.Appraiser.Check(req.TEE); err != nil {
		s.metrics.attestation(s.teeLabel(req.TEE), refused)
		p := fromClass("AttestationError", err)
		s.audit(r, "attest", refused, "tee", s.teeLabel(req.TEE), "rule", p.reason.Rule)
		return p
	}
	one, err := s.sessions.open(req.TEE)
	var full fullError
	if errors.As(err, &full) {
		return &problem{status: http.StatusTooManyRequests, variant: "TooManyRequests", detail: full.Error(), retryAfter: full.wait}
	}
	if err != nil {
		return err
	}
	answer, err := json.Marshal(rcar.Challenge{Nonce: one.nonce, ExtraParams: json.RawMessage(`""`)})
	if err != nil {
		return err
	}
	s.setCookie(w, one)
	writeJSON(w, answer)
	return nil
}

// spoken says whether a protocol version is 0.2 to 0.4.
func spoken(version string) bool {
	parts := strings.Split(version, ".")
	if len(parts) != 3 || parts[0] != "0" {
		return false
	}
	minor, err := strconv.ParseUint(parts[1], 10, 8)
	if err != nil || minor < 2 || minor > 4 {
		return false
	}
	_, err = strconv.ParseUint(parts[2], 10, 16)
	return err == nil
}

// attest has the evidence of a session appraised and answers with a token.
func (s *Server) attest(w http.ResponseWriter, r *request) error {
	cookie, err := r.Cookie(rcar.SessionCookie)
	if err != nil {
		return unattested("no cookie " + rcar.SessionCookie + "; start with POST " + prefix + "auth")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fromClass("SerdeError", readError(err))
	}
	a, err := rcar.ParseAttestation(body)
	if err != nil {
		return badRequest("SerdeError", "%v", err)
	}
	if _, err := recipientOf(a.RuntimeData.TEEPubKey); err != nil {
		return badRequest("JweError", "%v", err)
	}
	one, err := s.sessions.use(cookie.Value, a.RuntimeData.Nonce)
	if err != nil {
		s.audit(r, "attest", refused, "rule", err.Error())
		return unattested(err.Error() + "; start again with POST " + prefix + "auth")
	}
	result, err := s.parts.Appraiser.Appraise(r.Context(), one.tee, rcar.SHA384, a)
	if err != nil {
		p := fromClass("AttestationError", err)
		outcome := refused
		if p.status >= http.StatusInternalServerError {
			outcome = failed
		}
		s.metrics.attestation(one.tee, outcome)
		s.audit(r, "attest", outcome, "tee", one.tee, "rule", p.reason.Rule)
		return p
	}
	signed, id, err := s.parts.Tokens.Issue(result.Submods)
	if err != nil {
		s.metrics.attestation(one.tee, failed)
		return err
	}
	answer, err := json.Marshal(rcar.Response{Token: signed})
	if err != nil {
		return err
	}
	s.sessions.attest(one.id, signed)
	s.metrics.attestation(one.tee, succeeded)
	s.audit(r, "attest", succeeded, "tee", one.tee, "status", result.Status, "policy_digest", result.PolicyDigest, "jti", id)
	s.setCookie(w, one)
	writeJSON(w, answer)
	return nil
}

func unattested(detail string) *problem {
	return &problem{status: http.StatusUnauthorized, variant: "AttestationError", detail: detail}
}

// readError keeps the class of a body that is too large; any other failure
// to read it is the client's.
func readError(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return badRequest("SerdeError", "request body ended early")
}

func (s *Server) setCookie(w http.ResponseWriter, one session) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure follows the listener: a cookie of plain HTTP could not come back
		Name: rcar.SessionCookie, Value: one.id, Path: "/", Expires: one.expires,
		HttpOnly: true, Secure: s.opts.SecureCookie, SameSite: http.SameSiteStrictMode,
	})
}
