// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-cc/coffer/imagepull/policy/sigstore"
)

const (
	mediaTypeSimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	artifactTypeCosign     = "application/vnd.dev.cosign.artifact.sig.v1+json"
	annotationPredicate    = "dev.sigstore.bundle.predicateType"
	maxBundle              = 128 << 10
	maxAttached            = 8 << 20 // of all signatures of an image
)

// candidate is a signature that the registry has for the image, not checked.
type candidate struct {
	where     string
	signature *sigstore.Signature
	subject   digest.Digest // whose signature it was found as
	err       error         // it cannot be read
}

// stage is one place where the registry may have signatures. It is read when a
// requirement gets to it, and then kept for the next.
type stage struct {
	read func(context.Context) ([]candidate, error)

	done  bool
	found []candidate
	err   error // the place could not be asked, or not to its end
}

// stages are all places: first the tags that cosign writes, since every
// registry has them, then what refers to the image.
func (e *evaluation) stages() []*stage {
	var tags, referrers []*stage
	for _, d := range e.image.digests {
		tags = append(tags, &stage{read: func(ctx context.Context) ([]candidate, error) { return e.readTag(ctx, d) }})
		referrers = append(referrers, &stage{read: func(ctx context.Context) ([]candidate, error) { return e.readReferrers(ctx, d) }})
	}
	return append(tags, referrers...)
}

// candidates returns what the stage has. A manifest that is not there is no
// error.
func (s *stage) candidates(ctx context.Context) ([]candidate, error) {
	if !s.done {
		s.found, s.err = s.read(ctx)
		if errdefs.IsNotFound(s.err) {
			s.err = nil
		}
		s.done = ctx.Err() == nil
	}
	return s.found, s.err
}

// readTag reads the manifest sha256-….sig, each layer of which is a signature.
func (e *evaluation) readTag(ctx context.Context, subject digest.Digest) ([]candidate, error) {
	tag := digest.SHA256.String() + "-" + subject.Encoded() + ".sig"
	body, _, _, err := e.source.Tag(ctx, e.image.name.String(), tag)
	if err != nil {
		return nil, err
	}
	return e.readLayers(ctx, body, subject, "tag "+tag)
}

// readReferrers reads the signatures among what refers to the image.
func (e *evaluation) readReferrers(ctx context.Context, subject digest.Digest) ([]candidate, error) {
	all, err := e.source.Referrers(ctx, e.image.name.String(), subject, "")
	if err != nil {
		return nil, err
	}
	var out []candidate
	for _, d := range all {
		where := "referrer " + d.Digest.String()
		if !mayBeSignature(d) {
			continue
		}
		if p := d.Annotations[annotationPredicate]; p != "" && p != sigstore.PredicateCosignSign {
			out = append(out, candidate{where: where, err: notSignature(p)})
			continue
		}
		if len(out) >= maxSignatures {
			return append(out, candidate{where: where, err: errTooMany}), nil
		}
		body, _, err := e.source.Manifest(ctx, e.image.name.String(), d.Digest)
		if err != nil {
			if !aboutContent(err) {
				return out, err
			}
			out = append(out, candidate{where: where, err: err})
			continue
		}
		more, err := e.readLayers(ctx, body, subject, where)
		out = append(out, more...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// mayBeSignature looks at what a registry says about a referrer. Some give the
// type of its (empty) configuration instead of its own, or none.
func mayBeSignature(d ocispec.Descriptor) bool {
	switch d.ArtifactType {
	case "", ocispec.MediaTypeEmptyJSON, artifactTypeCosign:
		return true
	}
	return strings.HasPrefix(d.ArtifactType, sigstore.BundleMediaTypePrefix)
}

var errTooMany = fmt.Errorf("more than %d signatures: the rest was not read", maxSignatures)

// signatureManifest is what is needed of a manifest that holds signatures. An
// empty entry is much smaller in the document than a descriptor in memory, so
// they are read one at a time.
type signatureManifest struct {
	Layers []json.RawMessage `json:"layers"`
}

// readLayers reads the layers of a manifest that are signatures, in either
// form, each into a candidate. An error means that the registry could not be
// asked; what it answered is kept.
func (e *evaluation) readLayers(ctx context.Context, body []byte, subject digest.Digest, where string) ([]candidate, error) {
	var m signatureManifest
	if len(body) > maxDocument || !readsAs(body, &m) {
		return []candidate{{where: where, err: errors.New("not a manifest of signatures")}}, nil
	}
	var out []candidate
	for i, entry := range m.Layers {
		var d ocispec.Descriptor
		if !readsAs(entry, &d) {
			return append(out, candidate{where: where, err: errors.New("not a manifest of signatures")}), nil
		}
		isBundle := strings.HasPrefix(d.MediaType, sigstore.BundleMediaTypePrefix)
		if !isBundle && d.MediaType != mediaTypeSimpleSigning {
			continue
		}
		c := candidate{where: where, subject: subject}
		if len(m.Layers) > 1 {
			c.where = fmt.Sprintf("%s, signature %d", where, i+1)
		}
		if len(out) >= maxSignatures {
			c.err = errTooMany
			return append(out, c), nil
		}
		limit := int64(maxSignature)
		if isBundle {
			limit = maxBundle
		}
		switch b, err := e.blob(ctx, d, limit); {
		case err != nil && !aboutContent(err):
			return out, err
		case err != nil:
			c.err = err
		case isBundle:
			c.signature, c.err = sigstore.ParseBundle(b)
		default:
			c.signature, c.err = sigstore.FromAnnotations(b, d.Annotations)
		}
		out = append(out, c)
	}
	return out, nil
}

func readsAs(b []byte, v any) bool { return json.Unmarshal(b, v) == nil }

func (e *evaluation) blob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit || d.Size < 0 {
		return nil, fmt.Errorf("%d bytes, more than %d: %w", d.Size, limit, errdefs.ErrInvalidArgument)
	}
	if e.read += d.Size; e.read > maxAttached {
		return nil, fmt.Errorf("more than %d bytes of signatures: %w", maxAttached, errdefs.ErrInvalidArgument)
	}
	b, err := e.source.Blob(ctx, e.image.name.String(), d, limit)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size || d.Digest.Validate() != nil || d.Digest != d.Digest.Algorithm().FromBytes(b) {
		return nil, fmt.Errorf("its bytes are not those of %s: %w", clip(d.Digest.String(), 100), errdefs.ErrDataLoss)
	}
	return b, nil
}

// aboutContent reports whether the registry answered, with something wrong: a
// signature like that is not accepted, and others may be.
func aboutContent(err error) bool {
	return errdefs.IsInvalidArgument(err) || errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) ||
		errdefs.IsNotImplemented(err) || errdefs.IsResourceExhausted(err)
}
