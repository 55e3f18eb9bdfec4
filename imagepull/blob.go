// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/layercrypt"
	"github.com/coffer-cc/coffer/imagepull/registry"
)

// A verifier is a stream that is not to be believed before Verify, which reads
// the rest of it first and gives the verdict over all.
type verifier interface {
	io.Reader
	Verify() error
}

// forged is the verdict that the bytes are not those of the manifest, so that
// another place may have the right ones.
type forged struct{ error }

func (f forged) Unwrap() error { return f.error }

// sealed is the blob of an encrypted layer: digest, size, MAC, and what the
// publisher recorded about the plain content.
type sealed struct {
	*layercrypt.Reader
	want layercrypt.Expect
}

func newSealed(r *layercrypt.Reader, layer registry.Layer) sealed {
	return sealed{Reader: r, want: layercrypt.Expect{
		Digest: layer.Digest.String(), Size: layer.Size, DiffID: layer.DiffID.String(),
	}}
}

func (s sealed) Verify() error {
	err := s.Reader.Verify(s.want)
	if errors.Is(err, layercrypt.ErrIntegrity) {
		return forged{fmt.Errorf("%w: encrypt and push the image again, and do not trust this registry", err)}
	}
	return err
}

// plain is the blob of a layer that is not encrypted: its digest. That it has
// the size of the manifest is fetchReader's doing.
type plain struct {
	r     io.Reader
	hash  hash.Hash
	layer registry.Layer
}

func newPlain(r io.Reader, layer registry.Layer) *plain {
	return &plain{r: r, hash: sha256.New(), layer: layer}
}

func (p *plain) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.hash.Write(b[:n])
	return n, err
}

func (p *plain) Verify() error {
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{p}); err != nil {
		return err
	}
	if got := hexDigest(p.hash); got != p.layer.Digest.String() {
		return forged{fmt.Errorf("blob is %s, the manifest says %s: push the image again, and do not trust this registry: %w",
			got, p.layer.Digest, errdefs.ErrDataLoss)}
	}
	return nil
}

// tarStream hashes the tar stream for the diff id and keeps the error that
// ended it.
type tarStream struct {
	r    io.Reader
	hash hash.Hash
	err  error
}

func newTarStream(r io.Reader) *tarStream { return &tarStream{r: r, hash: sha256.New()} }

func (t *tarStream) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	t.hash.Write(b[:n])
	t.err = err
	return n, err
}

// verify compares the diff id; the stream must have been read to its end.
func (t *tarStream) verify(layer registry.Layer) error {
	if !errors.Is(t.err, io.EOF) {
		return fmt.Errorf("tar stream was not read to its end: %w", errdefs.ErrInternal)
	}
	if got := hexDigest(t.hash); got != layer.DiffID.String() {
		return fmt.Errorf("diff id of the content is %s, the config says %s: push the image again: %w", got, layer.DiffID, errdefs.ErrDataLoss)
	}
	return nil
}

func hexDigest(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
