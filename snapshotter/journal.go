// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// journal names, on disk, the layers that the puller may hold although no
// snapshot uses them, since theirs was removed. An entry is an empty file named by
// the chain id's hex part. Entries are added and dropped inside a write
// transaction of the metadata, or while the chain is in flight.
type journal struct{ dir string }

func (j journal) add(chain digest.Digest) error {
	f, err := os.OpenFile(j.path(chain), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("note layer %s: %w", chain, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("note layer %s: %w", chain, err)
	}
	return syncDir(j.dir)
}

func (j journal) drop(chain digest.Digest) error {
	if err := os.Remove(j.path(chain)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget layer %s: %w", chain, err)
	}
	return nil
}

// list returns the entries. Files that are none are ignored.
func (j journal) list() ([]digest.Digest, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var chains []digest.Digest
	for _, f := range files {
		chain := digest.NewDigestFromEncoded(digest.SHA256, f.Name())
		if chain.Validate() == nil {
			chains = append(chains, chain)
		}
	}
	return chains, nil
}

func (j journal) path(chain digest.Digest) string { return filepath.Join(j.dir, chain.Encoded()) }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
