// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package rvps is the Reference Value Provider Service: it keeps the values
// that claims are compared with. Who registers a value decides what is
// trusted, so only an administrator may. A value that has expired is treated
// as absent.
package rvps

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/kbs/storage"
)

const (
	version     = "0.1.0"
	lifetime    = 12 // months
	timeFormat  = "2006-01-02T15:04:05Z"
	maxMessage  = 2 << 20
	maxNameSize = 512
)

// Storage keeps reference values; see package storage for the contract.
type Storage interface {
	Get(ctx context.Context, namespace, key string) ([]byte, error)
	Put(ctx context.Context, namespace, key string, value []byte) error
	List(ctx context.Context, namespace string) ([]string, error)
}

// Service registers and answers reference values.
type Service struct {
	store Storage
	now   func() time.Time
}

// New returns a Service on a store. now is the clock; nil is time.Now.
func New(store Storage, now func() time.Time) *Service {
	if now == nil {
		now = time.Now
	}
	return &Service{store: store, now: now}
}

// message is what registers values. Payload is base64 of the form of Type.
type message struct {
	Version *string `json:"version"`
	Type    string  `json:"type"`
	Payload string  `json:"payload"`
}

// record is the stored form of one value.
type record struct {
	Version    string          `json:"version"`
	Name       string          `json:"name"`
	Expiration string          `json:"expiration"`
	Value      json.RawMessage `json:"value"`
}

// Register stores the values of a message and returns their names, sorted. A
// value replaces one of the same name. Malformed messages are
// errdefs.ErrInvalidArgument, types other than sample
// errdefs.ErrNotImplemented; nothing is stored then.
func (s *Service) Register(ctx context.Context, msg []byte) ([]string, error) {
	values, err := parseMessage(msg)
	if err != nil {
		return nil, fmt.Errorf("reference value message: %w", err)
	}
	return s.set(ctx, values)
}

// Set stores values by name, as a message of type sample would.
func (s *Service) Set(ctx context.Context, values map[string]any) ([]string, error) {
	raw := make(map[string]json.RawMessage, len(values))
	for name, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("reference value %s: %w: %w", name, errdefs.ErrInvalidArgument, err)
		}
		raw[name] = b
	}
	return s.set(ctx, raw)
}

func (s *Service) set(ctx context.Context, values map[string]json.RawMessage) ([]string, error) {
	names := slices.Sorted(maps.Keys(values))
	for _, name := range names {
		if name == "" || len(name) > maxNameSize {
			return nil, fmt.Errorf("reference value: a name is empty or longer than %d bytes: %w", maxNameSize, errdefs.ErrInvalidArgument)
		}
	}
	expires := s.now().UTC().AddDate(0, lifetime, 0).Format(timeFormat)
	for _, name := range names {
		b, err := json.Marshal(record{Version: version, Name: name, Expiration: expires, Value: values[name]})
		if err != nil {
			return nil, fmt.Errorf("reference value %s: %w: %w", name, errdefs.ErrInvalidArgument, err)
		}
		if err := s.store.Put(ctx, storage.ReferenceValues, name, b); err != nil {
			return nil, fmt.Errorf("reference value %s: %w", name, err)
		}
	}
	return names, nil
}

func parseMessage(b []byte) (map[string]json.RawMessage, error) {
	if len(b) > maxMessage {
		return nil, fmt.Errorf("larger than %d bytes: %w", maxMessage, errdefs.ErrInvalidArgument)
	}
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("not a JSON object with type and payload: %w", errdefs.ErrInvalidArgument)
	}
	if m.Version != nil && *m.Version != version {
		return nil, fmt.Errorf("version is %q; send %s: %w", *m.Version, version, errdefs.ErrInvalidArgument)
	}
	if m.Type != "sample" {
		return nil, fmt.Errorf("type %q is not supported; send sample: %w", m.Type, errdefs.ErrNotImplemented)
	}
	payload, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("payload is not base64 with padding: %w", errdefs.ErrInvalidArgument)
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(payload, &values); err != nil || len(values) == 0 {
		return nil, fmt.Errorf("payload is not a JSON object of at least one name and value: %w", errdefs.ErrInvalidArgument)
	}
	return values, nil
}

// ReferenceValue returns the value of a name. An absent or expired one is
// errdefs.ErrNotFound; the error of an expired one says so.
func (s *Service) ReferenceValue(ctx context.Context, name string) (any, error) {
	if name == "" {
		return nil, fmt.Errorf("reference value: name is empty: %w", errdefs.ErrNotFound)
	}
	b, err := s.store.Get(ctx, storage.ReferenceValues, name)
	if err != nil {
		return nil, fmt.Errorf("reference value %s: %w", name, err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("reference value %s: the stored record is damaged; register it again: %w", name, errdefs.ErrDataLoss)
	}
	expires, err := time.Parse(timeFormat, r.Expiration)
	if err != nil {
		return nil, fmt.Errorf("reference value %s: the stored expiry is damaged; register it again: %w", name, errdefs.ErrDataLoss)
	}
	if !s.now().Before(expires) {
		return nil, fmt.Errorf("reference value %s: expired at %s; register it again: %w", name, r.Expiration, errdefs.ErrNotFound)
	}
	dec := json.NewDecoder(strings.NewReader(string(r.Value)))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("reference value %s: the stored value is damaged; register it again: %w", name, errdefs.ErrDataLoss)
	}
	return v, nil
}

// Names lists the registered names, expired ones included.
func (s *Service) Names(ctx context.Context) ([]string, error) {
	return s.store.List(ctx, storage.ReferenceValues)
}
