// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// An opener makes a blob's verifier over its bytes, which are the registry's or
// those of a spool.
type opener func(io.Reader) (verifier, error)

// spool keeps a blob as the registry sends it (ciphertext, if it is encrypted)
// beside a staging directory until all of it is verified, and reads it then: no
// decompressor and no unpacker meets a byte that is not authenticated. The file
// has no name, so that nothing is left whenever the process ends.
type spool struct{ file *os.File }

func newSpool(staging *store.Staging) (*spool, error) {
	f, err := os.CreateTemp(filepath.Dir(staging.Dir), "spool-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close() // the first error says more
		return nil, err
	}
	return &spool{f}, nil
}

// fill fetches and verifies the whole blob, and returns its verifier over the
// file, which checks everything once more.
func (s *spool) fill(fetch *fetchReader, open opener, layer registry.Layer, space *store.Store) (verifier, Stage, error) {
	// Only what was written can be verified, so a full disk fails the read.
	blob, err := open(io.TeeReader(fetch, s.file))
	if err != nil {
		return nil, StageDecrypt, err
	}
	if err := blob.Verify(); err != nil {
		if fetch.failure() != nil {
			return nil, StageFetch, err
		}
		return nil, StageVerify, space.OutOfSpace(err, max(layer.Size-fetch.offset, 0))
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return nil, StageVerify, fmt.Errorf("rewind spooled blob: %w", err)
	}
	if blob, err = open(s.file); err != nil {
		return nil, StageDecrypt, err
	}
	return blob, "", nil
}

// close gives the space back. The file was only read since it was verified.
func (s *spool) close() { _ = s.file.Close() }
