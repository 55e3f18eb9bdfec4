// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"sync"
)

// queued is how many events a watcher may be behind before it misses some.
const queued = 1024

// Queue is what one watcher has not seen yet: a bounded number of events, of
// which the newest are kept, since they say how things stand.
type Queue struct {
	ready chan struct{} // has an item while there may be something new

	mu     sync.Mutex
	events []item // guarded by mu, as are those below
	last   uint64 // dropped behind all of them
	ended  error
}

type item struct {
	event  Event
	missed uint64 // dropped in front of it
}

// NewQueue makes an empty queue.
func NewQueue() *Queue { return &Queue{ready: make(chan struct{}, 1)} }

// Put adds an event, in front of which missed others were dropped before they
// came here. It never waits.
func (q *Queue) Put(e Event, missed uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.events) == queued {
		q.drop()
	}
	q.events = append(q.events, item{e, missed + q.last})
	q.last = 0
	q.tell()
}

// End lets Run return err once all events are seen.
func (q *Queue) End(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = err
	q.tell()
}

// tell wakes Run. The caller holds mu.
func (q *Queue) tell() {
	select {
	case q.ready <- struct{}{}:
	default: // it has been told already
	}
}

// drop makes room for one event: an update, if there is any, else the oldest.
// The caller holds mu.
func (q *Queue) drop() {
	at := 0
	for i, it := range q.events {
		if it.event.State == Update {
			at = i
			break
		}
	}
	behind := &q.last
	if at+1 < len(q.events) {
		behind = &q.events[at+1].missed
	}
	*behind += q.events[at].missed + 1
	q.events = append(q.events[:at], q.events[at+1:]...)
}

// Run calls fn with the events until ctx ends, End was called, or fn returns an
// error; it returns what ended it.
func (q *Queue) Run(ctx context.Context, fn func(e Event, missed uint64) error) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-q.ready:
		}
		q.mu.Lock()
		events, ended := q.events, q.ended
		q.events = nil
		q.mu.Unlock()
		for _, it := range events {
			if err := fn(it.event, it.missed); err != nil {
				return err
			}
		}
		if ended != nil {
			return ended
		}
	}
}
