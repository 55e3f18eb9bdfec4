// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// magic begins the form that block devices have: it, the length of what
// follows as a little-endian number of 8 bytes, and the document compressed
// with gzip. What the device has behind that is not looked at.
const magic = "initdata"

// maxCompressed bounds the compressed document. gzip makes nothing much longer.
const maxCompressed = MaxSize + MaxSize/64

// Read reads a document in either form: its text, or that of block devices. It
// takes as much from r as it needs, of a text at most [MaxSize] bytes and one.
// Errors are as of [Parse]; those of r keep their class.
func Read(r io.Reader) (*Document, error) {
	head := make([]byte, len(magic))
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("init-data: %w", err)
	}
	var text []byte
	if string(head[:n]) == magic {
		text, err = unpack(r)
	} else {
		text, err = atMost(io.MultiReader(bytes.NewReader(head[:n]), r))
	}
	if err != nil {
		return nil, fmt.Errorf("init-data: %w", err)
	}
	return Parse(text)
}

// unpack reads what is behind the magic.
func unpack(r io.Reader) ([]byte, error) {
	var length [8]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, short(err)
	}
	size := binary.LittleEndian.Uint64(length[:])
	if size == 0 || size > maxCompressed {
		return nil, fmt.Errorf("compressed length %d is not 1 to %d: %w", size, maxCompressed, errdefs.ErrInvalidArgument)
	}
	compressed := make([]byte, size)
	if _, err := io.ReadFull(r, compressed); err != nil {
		return nil, short(err)
	}
	in := bytes.NewReader(compressed)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	z.Multistream(false)
	text, err := atMost(z)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("%d bytes follow the gzip stream within its length: %w", in.Len(), errdefs.ErrInvalidArgument)
	}
	return text, nil
}

// short is an error of the reader, or that it ends too soon.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ends before its length: %w", errdefs.ErrInvalidArgument)
	}
	return err
}

// atMost reads r to its end, which must come soon enough.
func atMost(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err == nil && len(b) > MaxSize {
		err = fmt.Errorf("longer than %d bytes: %w", MaxSize, errdefs.ErrInvalidArgument)
	}
	return b, err
}
