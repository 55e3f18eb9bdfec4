// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package layercrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Expect is what a layer's descriptor says about its blob. All of it is
// compared; it comes from a manifest that the caller has checked by digest.
type Expect struct {
	// Digest is the digest of the ciphertext, "sha256:...".
	Digest string
	// Size is the length of the ciphertext in bytes.
	Size int64
	// DiffID is the digest of the uncompressed layer, which the caller verifies
	// itself. Publishers that compress while they encrypt (buildah and podman
	// push) record it in the private options in place of the digest of the
	// compressed bytes; empty means that this is not accepted.
	DiffID string
}

// Reader decrypts a layer in one pass: each byte that it reads goes into the
// ciphertext digest and the MAC and is decrypted in the caller's buffer. It
// does not allocate while reading and is not safe for concurrent use.
type Reader struct {
	src     io.Reader
	pass    pass
	wantMAC []byte
	// wantPlain is not made needless by the MAC: any other recipient of the layer
	// has the layer key and can make another ciphertext with a right MAC, but
	// cannot change the digest in this packet. Empty where none was recorded.
	wantPlain string
	size      int64
	err       error // sticky; io.EOF once all was read
}

// NewReader returns a Reader of the ciphertext r. It keeps no reference to
// priv, which the caller may clear at once, and it does not close r. The error
// is as for the two Parse functions.
func NewReader(r io.Reader, pub PublicOptions, priv PrivateOptions) (*Reader, error) {
	return newReader(r, pub, priv, newPass)
}

func newReader(r io.Reader, pub PublicOptions, priv PrivateOptions, newPass newPassFunc) (*Reader, error) {
	if err := pub.check(); err != nil {
		return nil, err
	}
	if err := priv.check(); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(priv.SymKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	stream := cipher.NewCTR(block, priv.CipherOptions[nonceOption])
	return &Reader{
		src:       r,
		pass:      newPass(stream, priv.SymKey, priv.Digest != ""),
		wantMAC:   bytes.Clone(pub.HMAC),
		wantPlain: strings.Clone(priv.Digest),
	}, nil
}

// Read reads plaintext that is not authenticated yet: see [Reader.Verify]. An
// error of the reader below is returned as it is, again at each later call.
func (d *Reader) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.src.Read(p)
	if n < 0 || n > len(p) {
		d.err = errInvalidRead
		return 0, d.err
	}
	d.pass.open(p[:n])
	d.size += int64(n)
	d.err = err
	return n, err
}

// Verify gives the verdict over the whole layer: nil means that digest and size
// of the ciphertext, its MAC, and the plaintext digest where one was recorded,
// all hold. It first reads what is left, so that bytes behind the end of the
// content count too.
//
// A mismatch gives an error that wraps [ErrIntegrity] and names each check that
// failed. Where the reader below failed, that error is returned: such a layer
// is neither authentic nor forged.
func (d *Reader) Verify(want Expect) error {
	if err := d.drain(); err != nil {
		return err
	}
	got := d.pass.sums()
	var failed []string
	if got := digestString(got.digest); got != want.Digest {
		failed = append(failed, fmt.Sprintf("ciphertext digest is %s, want %s", got, want.Digest))
	}
	if d.size != want.Size {
		failed = append(failed, fmt.Sprintf("ciphertext has %d bytes, want %d", d.size, want.Size))
	}
	if !hmac.Equal(got.mac[:], d.wantMAC) {
		failed = append(failed, "ciphertext MAC does not match")
	}
	if d.wantPlain != "" && d.wantPlain != want.DiffID && !hmac.Equal([]byte(d.wantPlain), []byte(digestString(got.plain))) {
		failed = append(failed, "plaintext digest does not match the wrapped one")
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: %s", ErrIntegrity, strings.Join(failed, "; "))
	}
	return nil
}

func digestString(sum [sha256.Size]byte) string { return sha256Prefix + hex.EncodeToString(sum[:]) }

// errInvalidRead is for a reader below that breaks the contract of io.Reader.
var errInvalidRead = errors.New("reader returned an invalid count")

// maxEmptyReads is how many reads in a row may bring nothing.
const maxEmptyReads = 100

// drain reads to the end of the ciphertext.
func (d *Reader) drain() error {
	if d.err == nil {
		buf := make([]byte, 2*subBlock)
		for empty := 0; d.err == nil; {
			n, _ := d.Read(buf) // the error stays in d.err
			if n > 0 {
				empty = 0
			} else if empty++; empty == maxEmptyReads && d.err == nil {
				d.err = io.ErrNoProgress
			}
		}
	}
	if d.err == io.EOF { //nolint:errorlint // one that is wrapped is a failure, not the end
		return nil
	}
	return d.err
}
