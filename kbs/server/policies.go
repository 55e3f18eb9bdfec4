// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/policy"
	"github.com/coffer-cc/coffer/kbs/rcar"
)

// policyBody is the body of a policy request; Policy is base64url.
type policyBody struct {
	ID     string `json:"policy_id"`
	Policy string `json:"policy"`
}

func parsePolicyBody(r *request) (id, text string, err error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", "", fromClass("SerdeError", readError(err))
	}
	var b policyBody
	if err := json.Unmarshal(body, &b); err != nil {
		return "", "", badRequest("SerdeError", "body is not a JSON object with policy")
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(b.Policy, "="))
	if err != nil {
		return "", "", badRequest("SerdeError", "policy is not base64url")
	}
	return b.ID, string(raw), nil
}

func (s *Server) setResourcePolicy(w http.ResponseWriter, r *request) error {
	_, text, err := parsePolicyBody(r)
	if err != nil {
		return err
	}
	d, err := s.parts.Policies.SetResource(r.Context(), text)
	return s.policySet(w, r, d, err)
}

func (s *Server) setAttestationPolicy(w http.ResponseWriter, r *request) error {
	id, text, err := parsePolicyBody(r)
	if err != nil {
		return err
	}
	d, err := s.parts.Policies.SetAttestation(r.Context(), id, text)
	return s.policySet(w, r, d, err)
}

func (s *Server) policySet(w http.ResponseWriter, r *request, d policy.Document, err error) error {
	if err != nil {
		return fromClass("ParsePolicyError", err)
	}
	s.audit(r, "policy.in-force", succeeded, "policy", d.ID, "policy_digest", d.Digest())
	return reply(w, nil)
}

// getResourcePolicy lists the policy's id; under /resource-policy/ID it is the
// text, and under /resource-policy/ID/versions the history.
func (s *Server) getResourcePolicy(w http.ResponseWriter, r *request) error {
	id, sub, _ := strings.Cut(r.rest, "/")
	switch {
	case r.rest == "":
		return reply(w, []string{policy.ResourceID})
	case id != policy.ResourceID:
		return badPolicyPath()
	case sub == "versions":
		return s.history(w, r, id)
	case sub != "":
		return badPolicyPath()
	}
	d, err := s.parts.Policies.Resource(r.Context())
	return policyText(w, d, err)
}

// getAttestationPolicy lists ids; below an id it answers as
// getResourcePolicy.
func (s *Server) getAttestationPolicy(w http.ResponseWriter, r *request) error {
	id, sub, _ := strings.Cut(r.rest, "/")
	switch {
	case r.rest == "":
		ids, err := s.parts.Policies.Attestations(r.Context())
		if err != nil {
			return fromClass("StorageError", err)
		}
		return reply(w, ids)
	case id == policy.ResourceID || sub != "" && sub != "versions":
		return badPolicyPath()
	case sub == "versions":
		return s.history(w, r, id)
	}
	d, err := s.parts.Policies.Attestation(r.Context(), id)
	if errdefs.IsNotFound(err) {
		return &problem{
			status: http.StatusNotFound, variant: "PolicyNotFound", detail: fmt.Sprintf("no attestation policy %.64q is set", id),
			reason: rcar.Reason{NextStep: "the one that is asked about a CPU is default_cpu"},
		}
	}
	return policyText(w, d, err)
}

func badPolicyPath() *problem {
	return &problem{status: http.StatusNotFound, variant: "InvalidRequestPath", detail: "no such policy"}
}

func policyText(w http.ResponseWriter, d policy.Document, err error) error {
	if err != nil {
		return fromClass("StorageError", err)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("ETag", fmt.Sprintf("%q", d.Digest()))
	_, _ = io.WriteString(w, d.Text)
	return nil
}

func (s *Server) history(w http.ResponseWriter, r *request, id string) error {
	versions, err := s.parts.Policies.History(r.Context(), id)
	if err != nil {
		return fromClass("StorageError", err)
	}
	if versions == nil {
		versions = []string{}
	}
	return reply(w, versions)
}

// getReferenceValue answers with one value; without a name it lists names.
func (s *Server) getReferenceValue(w http.ResponseWriter, r *request) error {
	if r.rest == "" {
		names, err := s.parts.ReferenceValues.Names(r.Context())
		if err != nil {
			return fromClass("StorageError", err)
		}
		return reply(w, names)
	}
	name, err := url.PathUnescape(r.rest)
	if err != nil {
		return badRequest("InvalidRequestPath", "name is not percent-encoded as it should be")
	}
	value, err := s.parts.ReferenceValues.ReferenceValue(r.Context(), name)
	if err != nil {
		return fromClass("RvpsError", err)
	}
	body, err := json.Marshal(value)
	if err != nil {
		return fromClass("RvpsError", err)
	}
	writeJSON(w, body)
	return nil
}

func (s *Server) setReferenceValues(w http.ResponseWriter, r *request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fromClass("SerdeError", readError(err))
	}
	names, err := s.parts.ReferenceValues.Register(r.Context(), body)
	if err != nil {
		return fromClass("RvpsError", err)
	}
	s.audit(r, "reference-value.in-force", succeeded, "names", names)
	return reply(w, nil)
}
