// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coffer-cc/coffer/kbs/resource"
	"github.com/containerd/errdefs"
)

// maxAdminBody bounds an answer to the admin, in bytes.
const maxAdminBody = 16 << 20

const adminTokenStep = "make a new admin token with \"coffer-kbs admin token\", or check that it is this KBS's"

// ErrPlainHTTP marks the URL of another machine that AdminOptions.PlainHTTP
// does not allow.
var ErrPlainHTTP = errors.New("plain http shows the admin token and the secrets to everybody on the way; use https")

// AdminOptions are the optional settings of an Admin.
type AdminOptions struct {
	// CA has certificates in PEM form that are trusted beside the system's.
	CA []byte
	// Deadline bounds each call; 0 means 15 seconds.
	Deadline time.Duration
	// PlainHTTP allows an http URL of another machine: whoever is on the way
	// can then take the token and the secrets.
	PlainHTTP bool
}

// Admin changes what a service holds, with an admin's token. Its errors are
// *Error. It is safe for concurrent use.
type Admin struct {
	*transport
	token string
}

// PutOptions say how a resource is put.
type PutOptions struct {
	// Overwrite replaces a resource of the same name. Without it the service
	// is told to refuse with AlreadyExists; Trustee ignores that and replaces.
	Overwrite bool
}

// NewAdmin returns a client for the admin's calls of the service at rawURL. It
// makes no connection. The token goes to that service only.
func NewAdmin(rawURL, token string, opts AdminOptions) (*Admin, error) {
	if opts.Deadline <= 0 {
		opts.Deadline = defaultDeadline
	}
	t, err := newTransport(rawURL, opts.CA, opts.Deadline)
	if err != nil {
		return nil, err
	}
	if t.plain && !opts.PlainHTTP {
		return nil, fmt.Errorf("kbs %s: %w: %w", t.base, ErrPlainHTTP, errdefs.ErrInvalidArgument)
	}
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("kbs %s: the admin token is empty or not one word: %w", t.base, errdefs.ErrInvalidArgument)
	}
	return &Admin{transport: t, token: token}, nil
}

// Close closes idle connections.
func (a *Admin) Close() error {
	a.http.CloseIdleConnections()
	return nil
}

// PutResource stores data under id.
func (a *Admin) PutResource(ctx context.Context, id resource.ID, data []byte, opts PutOptions) error {
	r := request{
		op: "put " + id.URI().String(), method: http.MethodPost,
		contentType: "application/octet-stream", body: data, header: http.Header{},
	}
	if !opts.Overwrite {
		r.header.Set("If-None-Match", "*")
	}
	return a.resource(ctx, id, r)
}

// ListResources returns the ids of all resources, in ascending order. Trustee
// has no such call and refuses.
func (a *Admin) ListResources(ctx context.Context) ([]resource.ID, error) {
	const op = "list resources"
	body, err := a.get(ctx, op, "resource")
	if err != nil {
		return nil, err
	}
	var paths []string
	if err := json.Unmarshal(body, &paths); err != nil {
		return nil, a.strange(op, "answer is not a list of names")
	}
	ids := make([]resource.ID, len(paths))
	for i, path := range paths {
		if ids[i], err = resource.ParseID(path); err != nil {
			return nil, a.strange(op, err.Error())
		}
	}
	return ids, nil
}

// DeleteResource deletes id.
func (a *Admin) DeleteResource(ctx context.Context, id resource.ID) error {
	return a.resource(ctx, id, request{op: "delete " + id.URI().String(), method: http.MethodDelete, header: http.Header{}})
}

func (a *Admin) resource(ctx context.Context, id resource.ID, r request) error {
	if _, err := resource.ParseID(id.String()); err != nil {
		return a.invalid(r.op, err.Error())
	}
	r.path = id.URI().RequestPath()
	_, err := a.call(ctx, r)
	return err
}

// ResourcePolicy returns the Rego policy that decides who gets resources.
func (a *Admin) ResourcePolicy(ctx context.Context) ([]byte, error) {
	return a.get(ctx, "get resource policy", "resource-policy/resource-policy")
}

// AttestationPolicy returns the Rego policy id, such as "default_cpu", that
// appraises evidence.
func (a *Admin) AttestationPolicy(ctx context.Context, id string) ([]byte, error) {
	op := "get attestation policy " + id
	if id == "" || strings.Contains(id, "/") {
		return nil, a.invalid(op, "not the id of a policy")
	}
	return a.get(ctx, op, "attestation-policy/"+url.PathEscape(id))
}

// SetResourcePolicy replaces the Rego policy that decides who gets resources.
func (a *Admin) SetResourcePolicy(ctx context.Context, rego []byte) error {
	return a.post(ctx, "set resource policy", "resource-policy", map[string]string{
		"policy": base64.RawURLEncoding.EncodeToString(rego),
	})
}

// SetAttestationPolicy replaces the Rego policy id, such as "default_cpu", that
// appraises evidence.
func (a *Admin) SetAttestationPolicy(ctx context.Context, id string, rego []byte) error {
	return a.post(ctx, "set attestation policy", "attestation-policy", map[string]string{
		"policy_id": id,
		"policy":    base64.RawURLEncoding.EncodeToString(rego),
	})
}

// SetReferenceValues registers reference values by name. Each value is
// anything that encoding/json encodes.
func (a *Admin) SetReferenceValues(ctx context.Context, values map[string]any) error {
	const op = "set reference values"
	payload, err := json.Marshal(values)
	if err != nil {
		return a.invalid(op, "values cannot be encoded as JSON")
	}
	return a.post(ctx, op, "reference-value", map[string]string{
		"version": "0.1.0",
		"type":    "sample",
		"payload": base64.StdEncoding.EncodeToString(payload),
	})
}

func (a *Admin) post(ctx context.Context, op, path string, message map[string]string) error {
	body, err := json.Marshal(message)
	if err != nil {
		return a.invalid(op, "message cannot be encoded as JSON")
	}
	_, err = a.call(ctx, request{
		op: op, method: http.MethodPost, path: apiPrefix + path,
		contentType: contentJSON, body: body, header: http.Header{},
	})
	return err
}

func (a *Admin) get(ctx context.Context, op, path string) ([]byte, error) {
	return a.call(ctx, request{op: op, method: http.MethodGet, path: apiPrefix + path, header: http.Header{}})
}

// call makes a request as the admin. It repeats only what changes nothing, or
// what the service certainly did not do.
func (a *Admin) call(ctx context.Context, r request) ([]byte, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	r.header.Set("Authorization", "Bearer "+a.token)
	r.limit, r.secret = maxAdminBody, a.token
	return retry(ctx, func() ([]byte, error) {
		answer, err := a.do(ctx, r)
		var e *Error
		if !errors.As(err, &e) {
			return answer.body, err
		}
		refused := e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable
		e.temporary = e.temporary && (e.unsent || refused || r.method == http.MethodGet)
		if e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden {
			e.next = adminTokenStep
		}
		if errdefs.IsAlreadyExists(e) {
			e.next = "choose another name, or overwrite it on purpose"
		}
		return nil, e
	})
}

// String names the client without its token.
func (a *Admin) String() string { return "kbs admin of " + a.base }

// GoString is String, for the same reason.
func (a *Admin) GoString() string { return a.String() }
