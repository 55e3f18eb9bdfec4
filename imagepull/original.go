// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/clone"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/registry"
	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// Bounds of what is remembered of committed layers: how many, and the bytes of
// the names of directories of each that a commit may have changed. Names may be
// long, and images may come from anybody: all together take 64 MiB at the most.
const (
	maxOriginals = 4096
	maxImplicit  = 16 << 10
	nameCost     = 16 // beside its bytes
)

// original is a tree that layers of the same content can be copied from.
type original struct {
	chainID   digest.Digest // of the committed layer
	parent    digest.Digest
	path      string
	facts     unpack.Facts
	encrypted bool
}

// remember notes that a layer of this content is in the store now.
func (p *Puller) remember(l registry.Layer, s *staged) {
	names := 0
	for _, name := range s.facts.Implicit {
		if names += len(name) + nameCost; names > maxImplicit {
			return
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.originals {
		if len(p.originals) < maxOriginals {
			break
		}
		delete(p.originals, key) // whichever: at worst it is fetched again
	}
	p.originals[keyOf(l)] = original{chainID: l.ChainID, parent: l.Parent, facts: s.facts, encrypted: s.encrypted}
}

// known reports whether the content of a layer may be in the store.
func (p *Puller) known(l registry.Layer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, found := p.originals[keyOf(l)]
	return found
}

// reuse copies the content of the layer from one that was committed by this
// process. Without an error and a result there is none to be copied.
func (j *job) reuse(ctx context.Context) (*staged, error) {
	p, key := j.p, keyOf(j.layer)
	p.mu.Lock()
	o, found := p.originals[key]
	p.mu.Unlock()
	if !found {
		return nil, nil
	}
	layer, ok := p.store.Layer(o.chainID)
	if !ok || !o.pristine(layer.Path) {
		p.mu.Lock()
		delete(p.originals, key)
		p.mu.Unlock()
		return nil, nil
	}
	if err := j.pl.unpacks.acquire(ctx); err != nil {
		return nil, err
	}
	defer j.pl.unpacks.release()
	o.path = layer.Path
	s, err := j.copyOf(ctx, o)
	if s == nil || err != nil {
		return nil, err
	}
	// A removal first takes the layer out of the store, and never puts another
	// at its path: where it is still there, nothing of it was missing.
	if after, ok := p.store.Layer(o.chainID); !ok || after.Path != o.path {
		j.discard(ctx, s.Staging)
		return nil, nil
	}
	return s, nil
}

// pristine reports whether the commit left all in place: where a directory that
// the layer did not list was a link below, its files are elsewhere now.
func (o original) pristine(path string) bool {
	if o.parent == "" {
		return true
	}
	for _, name := range o.facts.Implicit {
		if info, err := os.Lstat(filepath.Join(path, name)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// copyOf copies a tree to a staging directory. The caller has a place among the
// unpacks. A copy that fails for no reason that a download would meet too is no
// error, and gives nil.
func (j *job) copyOf(ctx context.Context, o original) (*staged, error) {
	staging, err := j.p.store.Stage(ctx)
	if err != nil {
		return nil, j.fail(StageApply, err)
	}
	j.start(StageApply)
	reset := make(map[string]bool)
	if o.parent != "" { // its commit gave these what they have below
		for _, name := range o.facts.Implicit {
			reset[name] = true
		}
	}
	err = clone.Tree(ctx, o.path, staging.Dir, clone.Options{Reset: reset})
	if err == nil {
		j.end(StageApply, nil)
		return &staged{Staging: staging, facts: o.facts, encrypted: o.encrypted}, nil
	}
	err = j.p.store.OutOfSpace(err, 0)
	j.discard(ctx, staging)
	if !passing(ctx, err) {
		return nil, j.fail(StageApply, err)
	}
	// The layer has not failed: this is no end for those who count.
	j.event(StageApply, progress.Retry, func(e *Event) { e.Err = err })
	j.end(StageApply, progress.ErrAborted)
	j.log().WarnContext(ctx, "layer is fetched: the copy of an equal one did not succeed", "stage", StageApply, "err", err)
	return nil, nil
}

func onceReleased(s *share) func() { return sync.OnceFunc(s.release) }
