// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package cdh is the Confidential Data Hub: it gives confidential resources and
// unwrapped layer keys to the other processes of the same TEE.
//
// The hub runs inside the TEE. It trusts its ResourceGetter (which attests to
// the key service) and its callers in the TEE; packets come from the registry
// and are not trusted. The package imports no RPC, no registry client and not
// ocicrypt.
package cdh

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/cdh/keywrap"
)

// defaultKEKLifetime is how long a fetched key-encryption key is kept.
const defaultKEKLifetime = 5 * time.Minute

// ResourceGetter fetches a resource from the key service. Its errors carry an
// errdefs class, which the hub keeps. The result belongs to the caller.
type ResourceGetter interface {
	GetResource(ctx context.Context, uri string) ([]byte, error)
}

// Options are the hub's settings; the zero value is the default.
type Options struct {
	// KEKLifetime is how long a key-encryption key stays in memory after it
	// was fetched. Zero means five minutes.
	KEKLifetime time.Duration
}

// Hub unwraps layer keys and fetches resources. It is safe for concurrent use.
type Hub struct {
	resources ResourceGetter
	keks      *kekCache
}

// NewHub returns a hub over resources. Close it to clear the keys it holds.
func NewHub(resources ResourceGetter, opts Options) *Hub {
	lifetime := opts.KEKLifetime
	if lifetime <= 0 {
		lifetime = defaultKEKLifetime
	}
	return &Hub{resources: resources, keks: newKEKCache(resources.GetResource, lifetime)}
}

// Close ends running key fetches, waits for them, and clears all keys. Later
// calls of UnwrapKey are Unavailable.
func (h *Hub) Close() { h.keks.close() }

// GetResource returns the resource that uri names, with the getter's errors.
// Resources are not cached. The caller owns the result.
func (h *Hub) GetResource(ctx context.Context, uri string) ([]byte, error) {
	if uri == "" {
		return nil, fmt.Errorf("%w: empty resource URI; name it as kbs:///repository/type/tag", errdefs.ErrInvalidArgument)
	}
	return h.resources.GetResource(ctx, uri)
}

// UnwrapKey returns the private options that an annotation packet (JSON) holds.
// The caller owns them and clears them.
//
// The key-encryption key (KEK) is fetched once for all calls that wait for it,
// and kept for the lifetime of Options. A cached KEK that does not open a packet
// is fetched once more, so that a key replaced in the key service is noticed.
//
// Errors keep the class of the fetch; besides, InvalidArgument is a malformed
// packet, NotImplemented one for another provider or with a refused wrap type,
// and DataLoss one that the KEK does not open.
func (h *Hub) UnwrapKey(ctx context.Context, packet []byte) ([]byte, error) {
	p, err := keywrap.ParsePacket(packet)
	if err != nil {
		return nil, classify(err)
	}
	kid := resourceURI(p.KID())
	if err := p.Supported(); err != nil {
		return nil, fmt.Errorf("packet of key %s: %w", kid, classify(err))
	}
	for retried := false; ; retried = true {
		kek, err := h.keks.get(ctx, kid)
		if err != nil {
			return nil, fmt.Errorf("get key %s: %w", kid, err)
		}
		privateOptions, err := keywrap.Unwrap(kek.bytes, p)
		clear(kek.bytes)
		switch {
		case err == nil:
			return privateOptions, nil
		case !errors.Is(err, keywrap.ErrIntegrity):
			return nil, fmt.Errorf("packet of key %s: %w", kid, classify(err))
		}
		h.keks.drop(kek.from)
		if !kek.cached || retried {
			return nil, fmt.Errorf("key %s does not unwrap this layer (%w): %w; store the key that the image was "+
				"encrypted with under this name, or encrypt the image again", kid, errdefs.ErrDataLoss, err)
		}
	}
}

// resourceURI is the URI of a kid. Some publishers write the path alone.
func resourceURI(kid string) string {
	if strings.HasPrefix(kid, "/") {
		return "kbs://" + kid
	}
	return kid
}

// classify gives an error of keywrap its class on the wire.
func classify(err error) error {
	switch {
	case errors.Is(err, keywrap.ErrMalformed):
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	case errors.Is(err, keywrap.ErrUnsupported):
		return fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	default:
		return err
	}
}
