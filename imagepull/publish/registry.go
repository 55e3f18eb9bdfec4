// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// Access says how registries are reached. The zero value is anonymous: https
// for every host but those of this machine (localhost, 127.0.0.0/8, ::1),
// which are asked over plain http.
type Access struct {
	// PlainHTTP says whether the registry at host[:port] is asked over plain
	// http, logins included; nil is Loopback.
	PlainHTTP func(host string) bool
	// Credential looks up a login by host[:port]; nil means anonymous.
	Credential auth.CredentialFunc
	// HTTP sends the requests; nil means a client that retries requests
	// without a body up to four times on 429, 5xx and cut connections.
	HTTP *http.Client
}

// commitTimeout bounds the question whether an image is visible.
const commitTimeout = 15 * time.Second

// remoteImage is an image's place in a registry.
type remoteImage struct {
	ref    Reference
	repo   *remote.Repository
	blobs  atomic.Int64 // new objects at the destination
	nbytes atomic.Int64
}

func newRemote(ref Reference, access Access) *remoteImage {
	client := &auth.Client{Client: access.HTTP, Credential: access.Credential, Cache: auth.NewCache()}
	client.SetUserAgent("coffer")
	if client.Client == nil {
		client.Client = &http.Client{Transport: &retry.Transport{Policy: retryPolicy}}
	}
	if Loopback(ref.Registry) {
		// A registry on this machine may have its token service here too.
		client.BlockedRealmPrefixes = []netip.Prefix{}
	}
	plain := Loopback
	if access.PlainHTTP != nil {
		plain = access.PlainHTTP
	}
	return &remoteImage{ref: ref, repo: &remote.Repository{
		Client:    client,
		Reference: registry.Reference{Registry: ref.Registry, Repository: ref.Repository},
		PlainHTTP: plain(ref.Registry),
	}}
}

func retryPolicy() retry.Policy {
	return &retry.GenericPolicy{
		Retryable: retry.DefaultPredicate,
		Backoff:   retry.DefaultBackoff,
		MinWait:   100 * time.Millisecond,
		MaxWait:   10 * time.Second,
		MaxRetry:  4,
	}
}

// name returns the tag or digest that the reference names.
func (r *remoteImage) name() string {
	if r.ref.Digest != "" {
		return r.ref.Digest.String()
	}
	return r.ref.Tag
}

// root reads the manifest that the reference names.
func (r *remoteImage) root(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	what := "image " + r.name()
	desc, body, err := r.repo.FetchReference(ctx, r.name())
	if err != nil {
		return ocispec.Descriptor{}, nil, registryError(r.ref, what, err)
	}
	defer body.Close()
	if desc.Size > maxManifest {
		return ocispec.Descriptor{}, nil, tooLarge(r.ref.Pin(desc.Digest).String(), desc)
	}
	data, err := content.ReadAll(body, desc)
	if err != nil {
		return ocispec.Descriptor{}, nil, registryError(r.ref, what, err)
	}
	return desc, data, nil
}

// fetch opens a manifest or blob. The caller closes it and verifies it.
func (r *remoteImage) fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := r.repo.Fetch(ctx, desc)
	if err != nil {
		return nil, registryError(r.ref, "blob "+desc.Digest.String(), err)
	}
	return &remoteBody{body, r.ref, desc}, nil
}

// remoteBody gives an interrupted download the registry's name and a class.
type remoteBody struct {
	io.ReadCloser
	ref  Reference
	desc ocispec.Descriptor
}

func (b *remoteBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // the reader contract is EOF itself
		err = registryError(b.ref, "blob "+b.desc.Digest.String(), err)
	}
	return n, err
}

// prepare has nothing to check: a registry shows a missing right on upload.
func (r *remoteImage) prepare() error { return nil }

// exists reports whether the blob is at the destination already.
func (r *remoteImage) exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	ok, err := r.repo.Blobs().Exists(ctx, desc)
	if err != nil {
		return false, registryError(r.ref, "blob "+desc.Digest.String(), err)
	}
	return ok, nil
}

// push uploads one blob.
func (r *remoteImage) push(ctx context.Context, desc ocispec.Descriptor, body io.Reader) error {
	if err := r.repo.Blobs().Push(ctx, desc, body); err != nil {
		return registryError(r.ref, "upload of blob "+desc.Digest.String(), err)
	}
	r.count(desc)
	return nil
}

// pushManifest uploads a manifest that another one names by digest.
func (r *remoteImage) pushManifest(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	if err := r.repo.Manifests().Push(ctx, desc, bytes.NewReader(data)); err != nil {
		return registryError(r.ref, "upload of manifest "+desc.Digest.String(), err)
	}
	r.count(desc)
	return nil
}

// commit uploads the root manifest under the tag, which makes the image
// visible in one step. Where the answer does not tell whether it did, the
// registry is asked.
func (r *remoteImage) commit(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	err := r.repo.Manifests().PushReference(ctx, desc, bytes.NewReader(data), r.ref.Tag)
	var answer *errcode.ErrorResponse
	answered := errors.As(err, &answer)
	if err == nil || answered && answer.StatusCode < http.StatusInternalServerError || unsent(err) {
		return r.commitError(err)
	}
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	tagged, askErr := r.repo.Manifests().Resolve(ask, r.ref.Tag)
	switch {
	case askErr == nil && tagged.Digest == desc.Digest:
		return nil
	case answered && (askErr == nil || errors.Is(askErr, errdef.ErrNotFound)):
		return r.commitError(err)
	}
	return classed{r.commitError(err), ErrOutcomeUnknown}
}

func (r *remoteImage) commitError(err error) error {
	if err == nil {
		return nil
	}
	return registryError(r.ref, "upload of manifest "+r.ref.Tag, err)
}

func (r *remoteImage) count(desc ocispec.Descriptor) {
	r.blobs.Add(1)
	r.nbytes.Add(desc.Size)
}

// abort cannot take an upload back: it says what the registry keeps.
func (r *remoteImage) abort(context.Context) string {
	n := r.blobs.Load()
	if n == 0 {
		return fmt.Sprintf("nothing was written to %s", r.ref)
	}
	return fmt.Sprintf("tag %s of %s/%s is unchanged; %d uploaded blobs (%d bytes, encrypted) stay there unused until the registry collects garbage",
		r.ref.Tag, r.ref.Registry, r.ref.Repository, n, r.nbytes.Load())
}
