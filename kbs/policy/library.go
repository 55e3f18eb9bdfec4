// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/storage"
)

// ResourceID is the id of the one resource policy.
const ResourceID = "resource-policy"

var (
	//go:embed resource-policy.rego
	defaultResource string
	//go:embed default_cpu.rego
	defaultCPU string
)

// Storage keeps policies; see package storage for the contract.
type Storage interface {
	Get(ctx context.Context, namespace, key string) ([]byte, error)
	Put(ctx context.Context, namespace, key string, value []byte) error
	List(ctx context.Context, namespace string) ([]string, error)
}

// Library keeps the policies in force, and each text that ever was, and asks
// them. Where nothing was set, built-in policies apply: the resource policy
// releases only to attesters whose every submodule is affirming.
type Library struct {
	engine *Engine
	store  Storage
	now    func() time.Time
}

// NewLibrary returns a Library that evaluates with engine.
func NewLibrary(engine *Engine, store Storage) *Library {
	return &Library{engine: engine, store: store, now: time.Now}
}

// Allow asks the resource policy; see Engine.Allow.
func (l *Library) Allow(ctx context.Context, r Request, token map[string]any) (Decision, error) {
	d, err := l.Resource(ctx)
	if err != nil {
		return Decision{Policy: ResourceID}, err
	}
	return l.engine.Allow(ctx, d, r, token)
}

// Appraise asks the attestation policy of that id; see Engine.Appraise.
func (l *Library) Appraise(ctx context.Context, id string, input map[string]any) (Verdict, error) {
	d, err := l.Attestation(ctx, id)
	if err != nil {
		return Verdict{}, err
	}
	return l.engine.Appraise(ctx, d, input)
}

// Resource returns the resource policy in force.
func (l *Library) Resource(ctx context.Context) (Document, error) {
	return l.get(ctx, ResourceID, defaultResource)
}

// Attestation returns the attestation policy of that id; without a set or
// built-in one it is errdefs.ErrNotFound.
func (l *Library) Attestation(ctx context.Context, id string) (Document, error) {
	fallback := ""
	if id == "default_cpu" {
		fallback = defaultCPU
	}
	return l.get(ctx, id, fallback)
}

// Attestations lists the ids of all attestation policies.
func (l *Library) Attestations(ctx context.Context) ([]string, error) {
	ids, err := l.store.List(ctx, storage.Policies)
	if err != nil {
		return nil, err
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == ResourceID })
	if !slices.Contains(ids, "default_cpu") {
		ids = append(ids, "default_cpu")
	}
	slices.Sort(ids)
	return ids, nil
}

func (l *Library) get(ctx context.Context, id, fallback string) (Document, error) {
	text, err := l.store.Get(ctx, storage.Policies, id)
	if errdefs.IsNotFound(err) && fallback != "" {
		return Document{ID: id, Text: fallback}, nil
	}
	if err != nil {
		return Document{}, fmt.Errorf("policy %s: %w", id, err)
	}
	return Document{ID: id, Text: string(text)}, nil
}

// SetResource puts a resource policy in force once it compiles.
func (l *Library) SetResource(ctx context.Context, text string) (Document, error) {
	d := Document{ID: ResourceID, Text: text}
	if err := l.engine.CheckResource(d); err != nil {
		return d, err
	}
	return d, l.set(ctx, d)
}

// SetAttestation puts an attestation policy in force once it compiles. The id
// must be one that appraisals use; others would be kept and never asked.
func (l *Library) SetAttestation(ctx context.Context, id, text string) (Document, error) {
	d := Document{ID: id, Text: text}
	if !slices.Contains(attestationIDs(), id) {
		return d, fmt.Errorf("attestation policy %q would never be asked; its id must be one of %s: %w",
			id, strings.Join(attestationIDs(), ", "), errdefs.ErrInvalidArgument)
	}
	if err := l.engine.CheckAttestation(d); err != nil {
		return d, err
	}
	return d, l.set(ctx, d)
}

func attestationIDs() []string {
	return []string{"default_cpu", "default_dcu", "default_gpu", "default_nvidia-dpu", "default_ppcie", "default_switch"}
}

// set keeps the text in the history first, so that no text is ever in force
// that the history lacks.
func (l *Library) set(ctx context.Context, d Document) error {
	version := d.ID + "/" + l.now().UTC().Format("20060102T150405.000000000Z") + "/" + d.Digest()
	if err := l.store.Put(ctx, storage.PolicyHistory, version, []byte(d.Text)); err != nil {
		return err
	}
	return l.store.Put(ctx, storage.Policies, d.ID, []byte(d.Text))
}

// History lists the versions of a policy, oldest first, as id/time/digest.
func (l *Library) History(ctx context.Context, id string) ([]string, error) {
	all, err := l.store.List(ctx, storage.PolicyHistory)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(v string) bool { return !strings.HasPrefix(v, id+"/") }), nil
}
