// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// parkedFile is there from when a staging is parked until something is changed
// in it: it says that the staging is whole, and what it has.
const parkedFile = "parked.json"

// maxParkedNames bounds Tree.Implicit, in bytes: each directory is there with its
// whole path, which makes more of a deep tree than the layer itself has.
const (
	maxParkedNames = 1 << 20
	parkedNameCost = 16 // beside its bytes
)

// Content names what a layer unpacks to, whatever is below it: the bytes that
// the registry has, and what they must become.
type Content struct {
	Blob   digest.Digest `json:"blob"`
	DiffID digest.Digest `json:"diffID"`
}

// A Tree says what a staging has that is complete and verified.
type Tree struct {
	Content
	// Size, Inodes and Encrypted are as in LayerMeta.
	Size, Inodes int64
	Encrypted    bool
	// Implicit is for Commit.
	Implicit []string
}

func (t Tree) check() error {
	for _, d := range []digest.Digest{t.Blob, t.DiffID} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("layer digest %.80q: %w: %w", d, errdefs.ErrInvalidArgument, err)
		}
	}
	if t.Size < 0 || t.Inodes < 0 {
		return fmt.Errorf("parked layer %s has %d bytes and %d inodes: %w", t.Blob, t.Size, t.Inodes, errdefs.ErrInvalidArgument)
	}
	names := 0
	for _, name := range t.Implicit {
		if names += len(name) + parkedNameCost; names > maxParkedNames {
			return fmt.Errorf("layer %s has too many directories that it does not list: %w", t.Blob, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// parkedRecord is the content of parkedFile.
type parkedRecord struct {
	Content
	Size      int64    `json:"size"`
	Inodes    int64    `json:"inodes"`
	Encrypted bool     `json:"encrypted"`
	Implicit  [][]byte `json:"implicit"` // names need not be UTF-8
	BootID    string   `json:"bootID"`   // it counts until the machine next boots
}

func (t Tree) record(bootID string) parkedRecord {
	rec := parkedRecord{Content: t.Content, Size: t.Size, Inodes: t.Inodes, Encrypted: t.Encrypted, BootID: bootID}
	for _, name := range t.Implicit {
		rec.Implicit = append(rec.Implicit, []byte(name))
	}
	return rec
}

func parseParked(b []byte) (tree Tree, bootID string, err error) {
	var rec parkedRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return Tree{}, "", err
	}
	tree = Tree{Content: rec.Content, Size: rec.Size, Inodes: rec.Inodes, Encrypted: rec.Encrypted}
	for _, name := range rec.Implicit {
		tree.Implicit = append(tree.Implicit, string(name))
	}
	return tree, rec.BootID, tree.check()
}

// A parked layer is in a directory of its own in parkedDir.
type parked struct {
	id           string
	size, inodes int64
	since        time.Time
}

// Park notes that the staging is complete and verified, as the tree says. It
// survives the end of the process from then on, though not that of the machine,
// until Commit or Discard. A second call does nothing.
func (st *Staging) Park(tree Tree) error {
	if st.tree != nil {
		return nil
	}
	if st.done {
		return errEnded()
	}
	err := tree.check()
	if err == nil {
		err = st.writeParked(tree)
	}
	if err != nil {
		return st.store.OutOfSpace(fmt.Errorf("park layer %s: %w", tree.Blob, err), 0)
	}
	st.tree = &tree
	return nil
}

func (st *Staging) writeParked(tree Tree) error {
	path := filepath.Join(filepath.Dir(st.Dir), parkedFile)
	draft := path + ".new"
	err := writeJSON(draft, tree.record(st.store.bootID))
	if err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(draft))
	}
	return nil
}

// unpark is for before something is changed in the staging.
func (st *Staging) unpark() error {
	if st.tree == nil {
		return nil
	}
	if err := removeParkedFile(filepath.Dir(st.Dir)); err != nil {
		return err
	}
	st.tree = nil
	return nil
}

// Leave ends the staging. What is parked stays in the store for Take, until GC
// or Reserve removes it; anything else is discarded, and so is what the store has
// parked already. It does nothing once the staging has ended.
func (st *Staging) Leave() (stays bool, err error) {
	if st.done {
		return false, nil
	}
	if st.tree != nil {
		if stays, err = st.store.keep(st); stays {
			st.end()
			return true, nil
		}
	}
	return false, errors.Join(err, st.Discard())
}

// keep takes a parked staging over, unless there is one of its content.
func (s *Store) keep(st *Staging) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return true, nil // where it is, for the next Open
	}
	if _, found := s.parked[st.tree.Content]; found {
		return false, nil
	}
	dir := s.path(parkedDir, st.id)
	if err := os.Rename(filepath.Dir(st.Dir), dir); err != nil {
		return false, fmt.Errorf("park layer %s: %w", st.tree.Blob, err)
	}
	now := time.Now()
	s.parked[st.tree.Content] = parked{id: st.id, size: st.tree.Size, inodes: st.tree.Inodes, since: now}
	_ = os.Chtimes(filepath.Join(dir, parkedFile), now, now) // else it counts as older after a restart
	return true, nil
}

// Parked reports whether Take would find a layer.
func (s *Store) Parked(c Content) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, found := s.parked[c]
	return found
}

// Take returns a parked layer as a staging that is complete and verified, and
// false if there is none. It is the caller's alone, and parked until Commit or
// Discard.
func (s *Store) Take(c Content) (*Staging, Tree, bool) {
	s.mu.Lock()
	p, found := s.parked[c]
	if !found || s.closed {
		s.mu.Unlock()
		return nil, Tree{}, false
	}
	delete(s.parked, c)
	s.staged++
	s.mu.Unlock()
	from := s.path(parkedDir, p.id)
	tree, _, err := s.readParked(from)
	if err == nil && tree.Content != c {
		err = fmt.Errorf("it is of another layer: %w", errdefs.ErrDataLoss)
	}
	if err == nil {
		err = os.Rename(from, s.path(stagingDir, p.id))
	}
	st := &Staging{Dir: s.path(stagingDir, p.id, fsDir), store: s, id: p.id, tree: &tree}
	if err != nil {
		st.end()
		s.dropParked(p.id, errors.Join(err, s.delete(context.Background(), []string{from})))
		return nil, Tree{}, false
	}
	return st, tree, true
}

func (s *Store) dropParked(id string, err error) {
	s.opts.Logger.Warn("dropped a parked layer", "dir", id, "err", err)
}

// readParked reads what a parked directory has, and since when.
func (s *Store) readParked(dir string) (Tree, time.Time, error) {
	path := filepath.Join(dir, parkedFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return Tree{}, time.Time{}, err
	}
	tree, bootID, err := parseParked(b)
	if err != nil {
		return Tree{}, time.Time{}, err
	}
	if bootID == "" || bootID != s.bootID {
		return Tree{}, time.Time{}, errors.New("it is of an earlier boot, which may not have written all of it")
	}
	if info, err := os.Lstat(filepath.Join(dir, fsDir)); err != nil || !info.IsDir() {
		return Tree{}, time.Time{}, errors.Join(errors.New("it has no files"), err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return Tree{}, time.Time{}, err
	}
	return tree, earlier(info.ModTime(), time.Now()), nil
}

// loadStagings keeps the stagings of an ended process that were parked, and
// removes all others.
func (s *Store) loadStagings() error {
	stagings, err := os.ReadDir(s.path(stagingDir))
	if err != nil {
		return err
	}
	for _, e := range stagings {
		dir := s.path(stagingDir, e.Name())
		_, _, err := s.readParked(dir)
		if err == nil {
			err = os.Rename(dir, s.path(parkedDir, e.Name()))
		}
		if err == nil {
			continue
		}
		if err := removeStaging(dir); err != nil {
			return err
		}
	}
	left, err := os.ReadDir(s.path(parkedDir))
	if err != nil {
		return err
	}
	for _, e := range left {
		tree, since, err := s.readParked(s.path(parkedDir, e.Name()))
		if _, twice := s.parked[tree.Content]; err == nil && !twice {
			s.parked[tree.Content] = parked{id: e.Name(), size: tree.Size, inodes: tree.Inodes, since: since}
			continue
		}
		s.dropParked(e.Name(), err)
		if err := removeStaging(s.path(parkedDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeStaging deletes a directory of the staging area. No part of one is ever
// taken for a parked layer.
func removeStaging(dir string) error {
	if err := removeParkedFile(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func removeParkedFile(dir string) error {
	err := os.Remove(filepath.Join(dir, parkedFile))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// parkedByAge returns the parked layers that no lease wants, the oldest first.
// The caller holds mu.
func (s *Store) parkedByAge() []Content {
	var all []Content
	for c := range s.parked {
		if !s.demanded(c) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Content) int {
		return cmp.Or(s.parked[a].since.Compare(s.parked[b].since), cmp.Compare(a.Blob, b.Blob), cmp.Compare(a.DiffID, b.DiffID))
	})
	return all
}

// demanded reports whether a pull that is under way has reserved with a content
// in mind. The caller holds mu.
func (s *Store) demanded(c Content) bool {
	for l := range s.leases {
		if _, found := l.wants[c]; found {
			return true
		}
	}
	return false
}

// unlinkParked makes parked layers disappear, one after the other, until no more
// are to go, and returns where their files are. The caller holds mu.
func (s *Store) unlinkParked(result *Result, contents []Content, more func(Content) bool) (trash []string, failed error) {
	for _, c := range contents {
		if !more(c) {
			break
		}
		p := s.parked[c]
		dir := s.path(parkedDir, p.id)
		if err := removeParkedFile(dir); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove parked layer %s: %w", c.Blob, err))
			continue
		}
		delete(s.parked, c)
		result.Parked++
		result.Bytes += p.size
		result.Inodes += p.inodes
		trash = append(trash, dir)
	}
	return trash, failed
}
