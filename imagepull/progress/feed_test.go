// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f Feed
		f.Publish(Event{Stage: Fetch, State: Update}) // nobody watches
		enough := errors.New("enough")
		watch := func(n int) chan error {
			done := make(chan error, 1)
			go func() {
				got := 0
				done <- f.Watch(t.Context(), func(e Event, missed uint64) error {
					switch {
					case missed != 0, got == 0 && e != (Event{}), got > 0 && e.Bytes != int64(got):
						t.Errorf("event %d: %+v, missed %d", got, e, missed)
					case got == n:
						return enough
					}
					got++
					return nil
				})
			}()
			return done
		}
		a, b := watch(5), watch(100)
		synctest.Wait()
		for i := range 100 {
			f.Publish(Event{Stage: Fetch, State: Update, Bytes: int64(i + 1)})
		}
		if errA, errB := <-a, <-b; !errors.Is(errA, enough) || !errors.Is(errB, enough) {
			t.Errorf("got %v and %v", errA, errB)
		}
		if len(f.watchers) > 0 {
			t.Error("watchers are left")
		}
	})
}

// TestSlowWatcher does not read until all is published: it loses updates, hears
// how many, and loses no more than it must.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f Feed
		ctx, cancel := context.WithCancel(t.Context())
		begun, read, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		var ends, updates int
		var missed uint64
		go func() {
			done <- f.Watch(ctx, func(e Event, before uint64) error {
				missed += before
				switch e.State {
				case End:
					ends++
				case Update:
					updates++
				default:
					close(begun)
					<-read
				}
				return nil
			})
		}()
		<-begun
		for i := range 3 * queued {
			state := Update
			if i%6 == 5 {
				state = End
			}
			f.Publish(Event{State: state})
		}
		close(read)
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if ends != queued/2 || updates != queued/2 || missed != 2*queued {
			t.Errorf("%d ends, %d updates, %d missed", ends, updates, missed)
		}
		// Where there are no updates to be left out, the oldest go.
		for range queued + 1 {
			f.Publish(Event{State: End})
		}
	})
}
