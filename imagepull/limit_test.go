// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// TestPlacesTakeTurns has an image of many layers and two of one each wait for
// the same place.
func TestPlacesTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(1, 1)
		large, small, late := p.share(), p.share(), p.share()
		if err := large.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(s *share, name string) {
			wg.Go(func() {
				if err := s.acquire(t.Context()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				s.release()
			})
			synctest.Wait() // it is in the queue now
		}
		for _, name := range []string{"large 1", "large 2", "large 3"} {
			wait(large, name)
		}
		wait(small, "small")
		wait(late, "late")
		large.release()
		wg.Wait()
		if got := strings.Join(order, ", "); got != "large 1, small, late, large 2, large 3" {
			t.Errorf("got %s", got)
		}
		if p.taken() != 0 || p.free != 1 || len(p.turns) > 0 {
			t.Errorf("left: %+v", p)
		}
	})
}

func TestPlacesPerImage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(3, 2)
		a, b := p.share(), p.share()
		for range 2 {
			if err := a.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		third := make(chan error, 1)
		go func() { third <- a.acquire(t.Context()) }()
		synctest.Wait()
		if p.taken() != 2 {
			t.Error("an image has more than its places")
		}
		if err := b.acquire(t.Context()); err != nil { // although a waits
			t.Fatal(err)
		}
		b.release()
		synctest.Wait()
		select {
		case err := <-third:
			t.Errorf("another's place went to an image that has its own: %v", err)
		default:
		}
		a.release()
		if err := <-third; err != nil {
			t.Error(err)
		}
	})
}

// TestPlacesCanceled lets waits end at any moment; no place gets lost.
func TestPlacesCanceled(t *testing.T) {
	t.Parallel()
	p := newPlaces(2, 1)
	shares := []*share{p.share(), p.share(), p.share()}
	var wg sync.WaitGroup
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			s := shares[i%len(shares)]
			if err := s.acquire(ctx); err == nil {
				s.release()
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		if rand.IntN(2) == 0 {
			wg.Go(cancel)
		} else {
			defer cancel()
		}
	}
	wg.Wait()
	if p.taken() != 0 || p.free != 2 || len(p.turns) > 0 || slices.ContainsFunc(shares, func(s *share) bool { return s.taken != 0 }) {
		t.Errorf("left: %+v", p)
	}
}
