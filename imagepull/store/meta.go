// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// The files of a layer's directory, beside what it unpacked to.
const (
	metaFile    = "meta.json"
	claimedFile = "claimed"
	durableFile = "durable" // there once everything else is on the disk
)

// LayerMeta describes a layer.
type LayerMeta struct {
	// ChainID names the layer together with all layers below it. It must be the
	// one that DiffID and Parent give.
	ChainID digest.Digest `json:"chainID"`
	// DiffID is the digest of the layer's tar stream.
	DiffID digest.Digest `json:"diffID"`
	// Parent is the chain id of the layer below; empty for the lowest.
	Parent digest.Digest `json:"parent,omitempty"`
	// Blob is the digest of what the registry has: compressed, perhaps encrypted.
	Blob digest.Digest `json:"blob"`
	// Size is the disk space that the layer takes, in bytes.
	Size int64 `json:"size"`
	// Inodes is the number of files that it has.
	Inodes int64 `json:"inodes"`
	// Encrypted says that the blob is encrypted.
	Encrypted bool `json:"encrypted"`
}

// check reports what is wrong with a layer's description.
func (m LayerMeta) check() error {
	for _, d := range []digest.Digest{m.ChainID, m.DiffID, m.Blob} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("layer digest %.80q: %w: %w", d, errdefs.ErrInvalidArgument, err)
		}
	}
	if m.Size < 0 || m.Inodes < 0 {
		return fmt.Errorf("layer %s has %d bytes and %d inodes: %w", m.ChainID, m.Size, m.Inodes, errdefs.ErrInvalidArgument)
	}
	want := m.DiffID
	if m.Parent != "" {
		if err := m.Parent.Validate(); err != nil {
			return fmt.Errorf("parent chain id %.80q: %w: %w", m.Parent, errdefs.ErrInvalidArgument, err)
		}
		want = digest.Canonical.FromString(m.Parent.String() + " " + m.DiffID.String())
	}
	if m.ChainID != want {
		return fmt.Errorf("chain id %s does not follow from parent and diff id, which give %s: %w", m.ChainID, want, errdefs.ErrInvalidArgument)
	}
	return nil
}

// record is the content of metaFile.
type record struct {
	LayerMeta
	// BootID names the boot of the kernel that holds the layer's data in
	// memory, for as long as it is not on the disk.
	BootID string `json:"bootID"`
}

func parseRecord(b []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return record{}, err
	}
	return rec, rec.check()
}

// load fills a newly opened store from the disk and removes what is unfinished
// or doubtful there.
func (s *Store) load() error {
	if err := s.loadStagings(); err != nil {
		return err
	}
	dirs, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		e, err := s.loadLayer(dir.Name())
		if err == nil {
			s.layers[e.meta.ChainID] = e
			continue
		}
		s.opts.Logger.Warn("dropped a layer", "dir", dir.Name(), "err", err)
		trash, err := s.discard(dir.Name())
		if err != nil {
			return err
		}
		if err := os.RemoveAll(trash); err != nil {
			return err
		}
	}
	return errors.Join(s.loadHolds(), s.loadImages())
}

// loadFiles reads the files of a directory and removes those that load does not
// take.
func (s *Store) loadFiles(dir string, load func(name string, b []byte, modified time.Time) bool) error {
	files, err := os.ReadDir(s.path(dir))
	if err != nil {
		return err
	}
	for _, file := range files {
		path := s.path(dir, file.Name())
		if file.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := file.Info()
			if err != nil {
				return err
			}
			if load(file.Name(), b, info.ModTime()) {
				continue
			}
		}
		s.opts.Logger.Warn("dropped a file", "file", path)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadLayer(id string) (*entry, error) {
	dir := s.path(layersDir, id)
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return nil, err
	}
	rec, err := parseRecord(b)
	if err != nil {
		return nil, err
	}
	if info, err := os.Lstat(filepath.Join(dir, fsDir)); err != nil || !info.IsDir() {
		return nil, errors.Join(errors.New("it has no files"), err)
	}
	durable, err := exists(filepath.Join(dir, durableFile))
	if err != nil {
		return nil, err
	}
	if !durable && (rec.BootID == "" || rec.BootID != s.bootID) {
		return nil, errors.New("it was not flushed before the machine went down")
	}
	if _, found := s.layers[rec.ChainID]; found {
		return nil, errors.New("it is there twice")
	}
	claimed, err := exists(filepath.Join(dir, claimedFile))
	if err != nil {
		return nil, err
	}
	return &entry{meta: rec.LayerMeta, id: id, claimed: claimed, dirty: !durable, used: time.Now()}, nil
}

// replaceJSON makes a file appear whole, in place of an older one.
func (s *Store) replaceJSON(dir, name string, v any) error {
	draft := s.path(stagingDir, dir+"-"+name)
	err := writeJSON(draft, v)
	if err == nil {
		err = os.Rename(draft, s.path(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(draft))
	}
	return nil
}

// writeJSON writes v to a file.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
