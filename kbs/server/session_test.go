// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"
)

// TestTokensAreBounded fills the room for tokens and waits until it is free.
func TestTokensAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	s := newSessions(time.Minute, 8, func() time.Time { return now })
	token := strings.Repeat("t", maxHeld/2)
	attest := func() state {
		one, err := s.open("sample")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.use(one.id, one.nonce); err != nil {
			t.Fatal(err)
		}
		s.attest(one.id, token)
		one, err = s.peek(one.id)
		if err != nil {
			t.Fatal(err)
		}
		return one.state
	}
	for i, want := range []state{attested, attested, answered} {
		if got := attest(); got != want {
			t.Errorf("%d: state %d, want %d", i, got, want)
		}
	}
	now = now.Add(time.Minute)
	if got := attest(); got != attested || s.held != len(token) {
		t.Errorf("after expiry: state %d, %d bytes held", got, s.held)
	}
}
