// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// state is how far a session has come. It only moves forward.
type state int

const (
	challenged state = iota // the nonce was not used yet
	answered                // the nonce was used; no token, or not yet
	attested                // there is a token
)

// session is one handshake.
type session struct {
	id, tee, nonce string
	expires        time.Time
	state          state
	token          string
}

var (
	errNoSession  = errors.New("no session of that cookie, or it has expired")
	errNonceUsed  = errors.New("the challenge of this session was already answered")
	errOtherNonce = errors.New("runtime-data.nonce is not the nonce of this session")
)

// fullError says how long until a place is free.
type fullError struct{ wait time.Duration }

func (e fullError) Error() string {
	return fmt.Sprintf("too many handshakes are open; try again in %s", e.wait.Round(time.Second))
}

// sessions keeps the sessions in memory. All live equally long, so that the
// order of their start is that of their end.
type sessions struct {
	life time.Duration
	max  int
	now  func() time.Time

	mu    sync.Mutex
	byID  map[string]*session
	queue []*session // oldest first
	held  int        // bytes of all tokens
}

// maxHeld bounds the tokens that are kept for cookies, in bytes: one can be
// larger than a megabyte.
const maxHeld = 256 << 20

func newSessions(life time.Duration, limit int, now func() time.Time) *sessions {
	return &sessions{life: life, max: limit, now: now, byID: map[string]*session{}}
}

// open starts a session with a fresh nonce.
func (s *sessions) open(tee string) (session, error) {
	b := make([]byte, 16+32)
	_, _ = rand.Read(b) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.expire(now)
	if len(s.queue) >= s.max && !s.evict() {
		return session{}, fullError{s.queue[0].expires.Sub(now)}
	}
	one := &session{
		id: hex.EncodeToString(b[:16]), nonce: base64.StdEncoding.EncodeToString(b[16:]),
		tee: tee, expires: now.Add(s.life),
	}
	s.byID[one.id] = one
	s.queue = append(s.queue, one)
	return *one, nil
}

// peek returns a session as it is.
func (s *sessions) peek(id string) (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(s.now())
	one, ok := s.byID[id]
	if !ok {
		return session{}, errNoSession
	}
	return *one, nil
}

// use takes the nonce of a session. It succeeds once, whatever comes of it.
func (s *sessions) use(id, nonce string) (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(s.now())
	one, ok := s.byID[id]
	switch {
	case !ok:
		return session{}, errNoSession
	case one.state != challenged:
		return session{}, errNonceUsed
	}
	one.state = answered
	if subtle.ConstantTimeCompare([]byte(one.nonce), []byte(nonce)) != 1 {
		return session{}, errOtherNonce
	}
	return *one, nil
}

// attest gives a session its token. Where there is no room for it, the token
// still serves its bearer, and the cookie does not.
func (s *sessions) attest(id, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.byID[id]
	if !ok || one.state != answered || s.held+len(token) > maxHeld {
		return
	}
	one.state, one.token = attested, token
	s.held += len(token)
}

// evict drops the oldest session that has no token, so that strangers who open
// sessions keep nobody out who answers at once. The caller holds mu.
func (s *sessions) evict() bool {
	i := slices.IndexFunc(s.queue, func(one *session) bool { return one.state != attested })
	if i < 0 {
		return false
	}
	delete(s.byID, s.queue[i].id)
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// expire drops what is over. The caller holds mu.
func (s *sessions) expire(now time.Time) {
	n := 0
	for n < len(s.queue) && !now.Before(s.queue[n].expires) {
		delete(s.byID, s.queue[n].id)
		s.held -= len(s.queue[n].token)
		s.queue[n] = nil
		n++
	}
	s.queue = s.queue[n:]
}
