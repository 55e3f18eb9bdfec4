// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// MaxSize bounds a document, in bytes: what a Key Broker Service accepts.
	MaxSize = 1 << 20
	// Version is the version of the format.
	Version = "0.1.0"
	// Format is what the text is called in an attestation.
	Format = "toml"

	maxEntries = 256
	// maxKeys bounds keys, their parts and nesting: what it costs to parse them
	// grows with the square of their number.
	maxKeys = 4096
)

// Document is one init-data. It is immutable.
type Document struct {
	text      []byte
	algorithm string
	digest    []byte
	entries   map[string]string
}

// Parse reads the text of a document. It must be valid UTF-8 and TOML, of
// [Version], with an algorithm this knows, and entries that are strings. Keys
// beside version, algorithm and data are passed over, as others do. Errors are
// InvalidArgument, and NotImplemented for another version or algorithm; they
// hold nothing of an entry.
func Parse(text []byte) (*Document, error) {
	d, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("init-data: %w", err)
	}
	return d, nil
}

func parse(text []byte) (*Document, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("longer than %d bytes: %w", MaxSize, errdefs.ErrInvalidArgument)
	}
	if !utf8.Valid(text) { // it could not travel in JSON
		return nil, fmt.Errorf("not valid UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	var wire struct {
		Version   string            `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	if err := decode(text, &wire); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case wire.Version == "":
		return nil, fmt.Errorf("version is missing: %w", errdefs.ErrInvalidArgument)
	case wire.Version != Version:
		return nil, fmt.Errorf("version %.32q; %q is read: %w", wire.Version, Version, errdefs.ErrNotImplemented)
	case len(wire.Data) > maxEntries:
		return nil, fmt.Errorf("more than %d entries in data: %w", maxEntries, errdefs.ErrInvalidArgument)
	}
	digest, err := sum(wire.Algorithm, text)
	if err != nil {
		return nil, err
	}
	return &Document{text: bytes.Clone(text), algorithm: wire.Algorithm, digest: digest, entries: wire.Data}, nil
}

func sum(algorithm string, text []byte) ([]byte, error) {
	switch algorithm {
	case "sha256":
		d := sha256.Sum256(text)
		return d[:], nil
	case "sha384":
		d := sha512.Sum384(text)
		return d[:], nil
	case "sha512":
		d := sha512.Sum512(text)
		return d[:], nil
	case "":
		return nil, fmt.Errorf("algorithm is missing: %w", errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("algorithm %.32q is not sha256, sha384 or sha512: %w", algorithm, errdefs.ErrNotImplemented)
}

// decode parses TOML after a look at what that will cost. The library's errors
// quote the text, of which they pass on the place alone.
func decode(text []byte, into any) error {
	var p unstable.Parser
	p.Reset(text)
	for left := maxKeys; p.NextExpression(); {
		if left -= countKeys(p.Expression()); left < 0 {
			return fmt.Errorf("more than %d keys", maxKeys)
		}
	}
	if p.Error() != nil {
		return errors.New("not TOML")
	}
	err := toml.Unmarshal(text, into)
	var place *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &place):
		line, _ := place.Position()
		return fmt.Errorf("line %d: not TOML with the texts version and algorithm and a table data of texts", line)
	}
	return errors.New("not TOML with the texts version and algorithm and a table data of texts")
}

func countKeys(n *unstable.Node) int {
	count := 0
	if n.Kind == unstable.Key || n.Kind == unstable.Array || n.Kind == unstable.InlineTable {
		count++
	}
	for children := n.Children(); children.Next(); {
		count += countKeys(children.Node())
	}
	return count
}

// Text is the document as it was read, byte for byte: the digest is over it.
func (d *Document) Text() string { return string(d.text) }

// Algorithm is the hash of the digest: sha256, sha384 or sha512.
func (d *Document) Algorithm() string { return d.algorithm }

// Digest returns the whole digest, of the algorithm's length.
func (d *Document) Digest() []byte { return bytes.Clone(d.digest) }

// Names are the names of the entries, sorted.
func (d *Document) Names() []string { return slices.Sorted(maps.Keys(d.entries)) }

// Entry returns an entry of data. The bytes belong to the caller.
func (d *Document) Entry(name string) ([]byte, bool) {
	text, ok := d.entries[name]
	return []byte(text), ok
}

// Fit makes a digest as long as a TEE's field of size bytes: cut at its end,
// or filled up with zeros. The field has 48 bytes in TDX (MRCONFIGID) and 32 in
// SNP (HOSTDATA).
func Fit(digest []byte, size int) []byte {
	field := make([]byte, size)
	copy(field, digest)
	return field
}
