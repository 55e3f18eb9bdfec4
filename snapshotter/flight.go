// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// flights keeps the pulls of a layer and its removal from the puller apart. Any
// number of pulls of one chain id may run at a time; a removal runs alone, does
// not start while a pull runs, and is waited for by new pulls.
type flights struct {
	mu     sync.Mutex
	chains map[digest.Digest]*flight // guarded by mu
}

type flight struct {
	pulls   int
	removal chan struct{} // not nil while removing; closed at the end
}

// pull begins a pull of chain, after a removal that is under way. If it returns
// nil, the caller ends the pull with pulled.
func (f *flights) pull(ctx context.Context, chain digest.Digest) error {
	for {
		removal := f.tryPull(chain)
		if removal == nil {
			return nil
		}
		select {
		case <-removal:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *flights) tryPull(chain digest.Digest) (removal <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.chains[chain]
	if c == nil {
		c = &flight{}
		f.chains[chain] = c
	}
	if c.removal != nil {
		return c.removal
	}
	c.pulls++
	return nil
}

func (f *flights) pulled(chain digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.chains[chain]
	c.pulls--
	if c.pulls == 0 {
		delete(f.chains, chain)
	}
}

// remove begins a removal, unless chain is being pulled or removed. The caller
// ends it with done.
func (f *flights) remove(chain digest.Digest) (done func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.chains[chain] != nil {
		return nil, false
	}
	removal := make(chan struct{})
	f.chains[chain] = &flight{removal: removal}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.chains, chain)
		close(removal)
	}, true
}
