// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"sync"
)

// places is a number of places that images share: each image has a limit of its
// own, and images that wait take turns, so that one of many layers does not
// hold up another.
type places struct {
	perImage int

	mu     sync.Mutex
	free   int      // guarded by mu, as are turns and all shares
	turns  []*share // those that wait, the next one first
	inside int      // places taken
}

func newPlaces(total, perImage int) *places {
	return &places{free: total, perImage: min(perImage, total)}
}

// share is what one image has of the places.
type share struct {
	of      *places
	taken   int
	waiting []chan struct{} // closed when it is this one's turn, first come first
}

func (p *places) share() *share { return &share{of: p} }

// acquire takes a place, in the order of the calls for this image. It fails
// only with the end of ctx.
func (s *share) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	p := s.of
	p.mu.Lock()
	if p.free > 0 && s.taken < p.perImage && len(s.waiting) == 0 {
		p.take(s)
		p.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if len(s.waiting) == 0 {
		p.turns = append(p.turns, s)
	}
	s.waiting = append(s.waiting, turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		s.forgo(turn)
		return context.Cause(ctx)
	}
}

// release gives a place back.
func (s *share) release() {
	p := s.of
	p.mu.Lock()
	defer p.mu.Unlock()
	s.taken--
	p.free++
	p.inside--
	p.next()
}

// forgo ends a wait. A place that came at the same moment goes to the next.
func (s *share) forgo(turn chan struct{}) {
	p := s.of
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range s.waiting {
		if w == turn {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			if len(s.waiting) == 0 {
				p.leave(s)
			}
			return
		}
	}
	s.taken--
	p.free++
	p.inside--
	p.next()
}

// take gives a place to an image. The caller holds mu.
func (p *places) take(s *share) {
	p.free--
	p.inside++
	s.taken++
}

// next gives free places to those whose turn it is. The caller holds mu.
func (p *places) next() {
	for i := 0; p.free > 0 && i < len(p.turns); {
		s := p.turns[i]
		if s.taken >= p.perImage {
			i++ // it has what it may have, and keeps its turn
			continue
		}
		p.take(s)
		close(s.waiting[0])
		s.waiting = s.waiting[1:]
		p.leave(s)
		if len(s.waiting) > 0 {
			p.turns = append(p.turns, s) // behind the others
		}
	}
}

// leave takes an image out of those that wait. The caller holds mu.
func (p *places) leave(s *share) {
	for i, t := range p.turns {
		if t == s {
			p.turns = append(p.turns[:i], p.turns[i+1:]...)
			return
		}
	}
}
