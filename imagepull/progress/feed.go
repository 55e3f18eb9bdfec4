// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"sync"
)

// Feed carries events to its watchers. The zero value is ready for use, by any
// number of goroutines.
type Feed struct {
	mu       sync.Mutex
	watchers map[*Queue]struct{} // guarded by mu
}

// Publish gives an event to all watchers. It never waits for one.
func (f *Feed) Publish(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for q := range f.watchers {
		q.Put(e, 0)
	}
}

// Watch calls fn with each event from now on, until ctx ends or fn returns an
// error, which it returns. The first call has the zero Event and says that from
// then on nothing is left out but what missed counts: events that were dropped in
// front of this one because fn was too slow. The first to go are updates. fn is
// called by one goroutine, the caller's.
func (f *Feed) Watch(ctx context.Context, fn func(e Event, missed uint64) error) error {
	q := NewQueue()
	f.mu.Lock()
	if f.watchers == nil {
		f.watchers = make(map[*Queue]struct{})
	}
	f.watchers[q] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, q)
	}()
	if err := fn(Event{}, 0); err != nil {
		return err
	}
	return q.Run(ctx, fn)
}
