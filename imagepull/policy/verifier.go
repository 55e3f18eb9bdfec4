// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/document"
)

// Image is what is asked about. What the digests name must have been verified
// against them.
type Image struct {
	// Name is the reference as the user gave it, in full: never a mirror's.
	Name string
	// Manifest is the platform's manifest.
	Manifest digest.Digest
	// Index is the index that it was chosen from, "" if there was none.
	Index digest.Digest
}

// Source reads signatures from the image's registry. What it returns for a
// digest has that digest; all else is unverified. Absence is NotFound.
type Source interface {
	// Manifest reads a manifest of the repository of ref.
	Manifest(ctx context.Context, ref string, d digest.Digest) (body []byte, mediaType string, err error)
	// Tag reads what a tag of the repository of ref points to.
	Tag(ctx context.Context, ref, tag string) (body []byte, mediaType string, d digest.Digest, err error)
	// Referrers lists the manifests that refer to subject; artifactType ""
	// lists all.
	Referrers(ctx context.Context, ref string, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	// Blob reads a blob whole, if it is not longer than limit.
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, limit int64) ([]byte, error)
}

// Provider is where the policy comes from: a *Policy or a *Loader.
type Provider interface {
	Policy(ctx context.Context) (*Policy, error)
}

// LookasideProvider is where the configuration of signature stores comes from:
// a *Lookaside or a *LookasideLoader.
type LookasideProvider interface {
	Lookaside(ctx context.Context) (*Lookaside, error)
}

// Options of a Verifier. The zero value knows no signature store beside the
// registry.
type Options struct {
	// Refresh is for the keys and certificates that a policy names by URI.
	Refresh Refresh
	// Lookaside configures the stores of simple signatures; nil is none.
	Lookaside LookasideProvider
	// HTTP asks HTTPS stores; nil means a client with the system's roots and no
	// proxy. Redirects are followed to HTTPS alone, whatever its own rule.
	HTTP *http.Client
	// Logger tells of decisions; nil discards.
	Logger *slog.Logger
}

// Verifier applies a policy. It is safe for concurrent use.
type Verifier struct {
	policy    Provider
	source    Source
	docs      *document.Reader
	lookaside LookasideProvider
	http      *http.Client
	pause     time.Duration // before a store is asked for the second time
	now       func() time.Time
	log       *slog.Logger
}

// NewVerifier makes a Verifier; it reads nothing yet. src may be nil where the
// policy asks for no signature in a registry, resources where it names nothing
// by kbs URI: a policy that does is then not met.
func NewVerifier(p Provider, src Source, resources ResourceGetter, opts Options) *Verifier {
	v := &Verifier{
		policy: p, source: src, docs: document.NewReader(resources, opts.Refresh),
		lookaside: opts.Lookaside, log: opts.Logger,
	}
	v.now, v.pause = opts.Refresh.Now, backoff.DefaultInitialInterval
	if v.now == nil {
		v.now = time.Now
	}
	web := http.Client{Transport: &http.Transport{TLSHandshakeTimeout: storeTimeout, IdleConnTimeout: storeTimeout}}
	if opts.HTTP != nil {
		web = *opts.HTTP
	}
	web.CheckRedirect = onlyHTTPS
	v.http = &web
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	return v
}

// evaluation is one image being asked about, by one goroutine.
type evaluation struct {
	*Verifier
	image asked

	attached  []*stage // where the registry may have signatures, in order
	read      int64    // bytes of them so far
	manifests map[digest.Digest][]byte

	stored    []stored // what signature stores have
	storedErr *refusal // why that is not all
	storeRead bool
}

// asked is an Image in parsed form.
type asked struct {
	name    name
	digests []digest.Digest // index first: it is what is signed most often
}

// has reports whether d is the image's manifest or index.
func (a asked) has(d digest.Digest) bool {
	for _, have := range a.digests {
		if d == have {
			return true
		}
	}
	return false
}

// Verify returns nil if the image may be pulled, else an error with a class:
// PermissionDenied, Unavailable, InvalidArgument, or FailedPrecondition where
// the policy needs what is not configured.
func (v *Verifier) Verify(ctx context.Context, img Image) error {
	p, err := v.policy.Policy(ctx)
	if err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("image policy: there is none: %w", errdefs.ErrFailedPrecondition)
	}
	a, err := parseImage(img)
	if err != nil {
		return fmt.Errorf("image policy: %w", err)
	}
	e := &evaluation{Verifier: v, image: a, manifests: map[digest.Digest][]byte{}}
	e.attached = e.stages()
	scope, requirements := p.find(a.name)
	if len(requirements) == 0 { // Parse makes none, and a zero Policy allows nothing
		return fmt.Errorf("image policy: %s requires nothing, which is never enough: %w", scope, errdefs.ErrPermissionDenied)
	}
	for _, r := range requirements {
		if err := r.check(ctx, e); err != nil {
			return decide(ctx, scope, r.kind(), err)
		}
	}
	v.log.DebugContext(ctx, "image policy allows", "image", a.name.String(), "scope", scope)
	return nil
}

func parseImage(img Image) (asked, error) {
	n, err := parseName(img.Name)
	if err != nil {
		return asked{}, fmt.Errorf("image %q: %w: %w", clip(img.Name, 200), err, errdefs.ErrInvalidArgument)
	}
	if n.bare() {
		n.tag = "latest"
	}
	a := asked{name: n}
	for _, d := range []digest.Digest{img.Index, img.Manifest} {
		if d == "" && len(a.digests) == 0 {
			continue // no index
		}
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return asked{}, fmt.Errorf("image %s: digest %q is not sha256: %w", n, clip(string(d), 100), errdefs.ErrInvalidArgument)
		}
		a.digests = append(a.digests, d)
	}
	if img.Manifest == "" {
		return asked{}, fmt.Errorf("image %s: no manifest digest: %w", n, errdefs.ErrInvalidArgument)
	}
	if n.digest != "" && !a.has(n.digest) {
		return asked{}, fmt.Errorf("image %s: what was resolved has other digests: %w", n, errdefs.ErrPermissionDenied)
	}
	return a, nil
}
