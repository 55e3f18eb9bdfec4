// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/coffer-cc/coffer/kbs/resource"
	"github.com/coffer-cc/coffer/kbs/storage"
)

// getResource releases a resource to the holder of a token, encrypted to the
// key that its evidence is bound to. Without a name it lists, for an
// administrator.
func (s *Server) getResource(w http.ResponseWriter, r *request) error {
	if r.rest == "" {
		return s.admin("resource.list", s.listResources)(w, r)
	}
	outcome, err := s.release(w, r)
	s.metrics.resource(outcome)
	switch outcome {
	case unauthenticated, refused, failed: // release audits the others itself
		s.audit(r, "resource.release", outcome, "path", r.shown(), "err", err.Error())
	}
	return err
}

func (s *Server) release(w http.ResponseWriter, r *request) (string, error) {
	claims, err := s.tokenClaims(r)
	if err != nil {
		return unauthenticated, err
	}
	jti, _ := claims["jti"].(string)
	id, err := resource.ParseID(r.rest)
	if err != nil {
		return refused, badRequest("InvalidRequestPath", "%v", err)
	}
	if err := s.allow(r, id, claims, jti); err != nil {
		if p := fromClass("PolicyEngineError", err); p.status != http.StatusForbidden {
			return failed, p
		}
		return denied, err
	}
	to, err := recipientIn(claims)
	if err != nil {
		return refused, &problem{status: http.StatusUnauthorized, variant: "JweError", detail: "the token has no usable tee-pubkey; attest again", err: err}
	}
	secret, err := s.parts.Storage.Get(r.Context(), storage.Resources, id.String())
	if errdefs.IsNotFound(err) {
		s.audit(r, "resource.release", notFound, "resource", id.String(), "jti", jti)
		return notFound, absent(id)
	}
	if err != nil {
		return failed, fromClass("StorageError", err)
	}
	defer clear(secret)
	sealed, err := to.seal(secret)
	if err != nil {
		return failed, &problem{status: http.StatusServiceUnavailable, variant: "JweError", detail: "the resource could not be encrypted", err: err}
	}
	s.audit(r, "resource.release", released, "resource", id.String(), "jti", jti)
	writeJSON(w, sealed)
	return released, nil
}

// tokenClaims returns the claims of the session's token or, without an
// attested session, of the bearer token.
func (s *Server) tokenClaims(r *request) (map[string]any, error) {
	token := ""
	if cookie, err := r.Cookie(rcar.SessionCookie); err == nil {
		if one, err := s.sessions.peek(cookie.Value); err == nil && one.state == attested {
			token = one.token
		}
	}
	if token == "" {
		token = bearer(r.Request)
	}
	if token == "" {
		return nil, &problem{
			status: http.StatusUnauthorized, variant: "TokenNotFound",
			detail: "Attestation Token not found; attest with POST " + prefix + "auth and " + prefix + "attest",
		}
	}
	claims, err := s.parts.Tokens.Verify(token)
	if err != nil {
		return nil, fromClass("TokenVerifierError", err)
	}
	return claims, nil
}

func bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// allow asks the resource policy. A denial is a problem with its reason.
func (s *Server) allow(r *request, id resource.ID, claims map[string]any, jti string) error {
	query := map[string]string{}
	for k, v := range r.URL.Query() {
		query[k] = v[0]
	}
	decision, err := s.parts.Policies.Allow(r.Context(), policy.Request{
		Plugin: resource.DefaultPlugin, Path: []string{id.Repository, id.Type, id.Tag}, Query: query,
	}, claims)
	if err != nil {
		return fromClass("PolicyEngineError", err)
	}
	if decision.Allowed {
		return nil
	}
	reason := *decision.Reason
	s.audit(r, "resource.release", denied, "resource", id.String(), "jti", jti,
		"policy", decision.Policy, "policy_digest", decision.Digest, "rule", reason.Rule, "got", reason.Got)
	return &problem{
		status: http.StatusForbidden, variant: "PolicyDeny", reason: reason,
		detail: "Access denied by policy: " + reason.String(),
	}
}

func absent(id resource.ID) *problem {
	return &problem{
		status: http.StatusNotFound, variant: "ResourceNotFound",
		detail: "no resource " + id.String(),
		reason: rcar.Reason{
			Rule: "the resource exists", Expected: id.String(), Got: "nothing",
			NextStep: "register it: coffer kbs resource set " + id.String() + " FILE",
		},
	}
}

func (s *Server) listResources(w http.ResponseWriter, r *request) error {
	names, err := s.parts.Storage.List(r.Context(), storage.Resources)
	if err != nil {
		return fromClass("StorageError", err)
	}
	return reply(w, names)
}

// putResource stores the body as it is. With If-None-Match: * it replaces
// nothing.
func (s *Server) putResource(w http.ResponseWriter, r *request) error {
	id, err := resource.ParseID(r.rest)
	if err != nil {
		return badRequest("InvalidRequestPath", "%v", err)
	}
	put := s.parts.Storage.Put
	switch match := r.Header.Get("If-None-Match"); match {
	case "":
	case "*":
		put = s.parts.Storage.PutNew
	default:
		return badRequest("SerdeError", "If-None-Match: only * is supported")
	}
	secret, err := io.ReadAll(r.Body)
	defer clear(secret)
	if err != nil {
		return fromClass("SerdeError", readError(err))
	}
	if len(secret) == 0 {
		return badRequest("SerdeError", "request body is empty; a resource has at least one byte")
	}
	err = put(r.Context(), storage.Resources, id.String(), secret)
	if errdefs.IsAlreadyExists(err) {
		return &problem{
			status: http.StatusPreconditionFailed, variant: "ResourceExists", detail: "resource " + id.String() + " is there already",
			reason: rcar.Reason{
				Rule: "If-None-Match: *", Expected: "no resource " + id.String(), Got: "one is there",
				NextStep: "choose another name, or replace it on purpose, without If-None-Match",
			},
		}
	}
	if err != nil {
		return fromClass("StorageError", err)
	}
	return reply(w, nil)
}

func (s *Server) deleteResource(w http.ResponseWriter, r *request) error {
	id, err := resource.ParseID(r.rest)
	if err != nil {
		return badRequest("InvalidRequestPath", "%v", err)
	}
	err = s.parts.Storage.Delete(r.Context(), storage.Resources, id.String())
	if errdefs.IsNotFound(err) {
		p := absent(id)
		p.reason.NextStep = "see what there is: coffer kbs resource list"
		return p
	}
	if err != nil {
		return fromClass("StorageError", err)
	}
	return reply(w, nil)
}

// reply answers with JSON, or with nothing.
func reply(w http.ResponseWriter, v any) error {
	if v == nil {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	body, err := json.Marshal(v)
	if err != nil {
		return errors.Join(errdefs.ErrInternal, err)
	}
	writeJSON(w, body)
	return nil
}
