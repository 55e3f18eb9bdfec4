// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto"
	_ "crypto/sha256" // the hashes of registers
	_ "crypto/sha512"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

const (
	eventTag = 6          // EV_EVENT_TAG of the TCG PC Client specification
	aaelTag  = 0x4141454c // "AAEL" as a number, written in little endian like all others

	maxText = 64 << 10
)

// Event is one thing that happened. Its text in the log is the three fields with
// single blanks between them.
type Event struct {
	// Domain and Operation say whose event it is and what was done. They are
	// not empty and have no white space.
	Domain, Operation string
	// Content is one line.
	Content string
}

// check refuses what could be read as another event.
func (e Event) check() error {
	for _, f := range []struct{ name, value string }{{"domain", e.Domain}, {"operation", e.Operation}} {
		if f.value == "" || strings.ContainsFunc(f.value, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return fmt.Errorf("event %s %.80q: %w: give one word without white space", f.name, f.value, errdefs.ErrInvalidArgument)
		}
	}
	text := e.text()
	switch {
	case !utf8.ValidString(text):
		return fmt.Errorf("event %.80s: %w: not UTF-8", e.Operation, errdefs.ErrInvalidArgument)
	case strings.ContainsAny(e.Content, "\n\r\x00"):
		return fmt.Errorf("event %.80s: %w: the content is more than one line", e.Operation, errdefs.ErrInvalidArgument)
	case len(text) > maxText:
		return fmt.Errorf("event %.80s: %w: %d bytes, at most %d are logged", e.Operation, errdefs.ErrInvalidArgument, len(text), maxText)
	}
	return nil
}

func (e Event) text() string { return e.Domain + " " + e.Operation + " " + e.Content }

// parseEvent is the reverse of text.
func parseEvent(text string) (Event, error) {
	domain, rest, ok := strings.Cut(text, " ")
	operation, content, ok2 := strings.Cut(rest, " ")
	e := Event{Domain: domain, Operation: operation, Content: content}
	if !ok || !ok2 {
		return Event{}, fmt.Errorf("event %.80q: %w: not a domain, an operation and a content", text, errdefs.ErrInvalidArgument)
	}
	return e, e.check()
}

// tagged is the event's data in its log entry, which is also what is hashed.
func (e Event) tagged() []byte {
	text := e.text()
	b := binary.LittleEndian.AppendUint32(nil, aaelTag)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// Digest is what the event extends a register with.
func (e Event) Digest(hash crypto.Hash) []byte { return sum(hash, e.tagged()) }

// entry is the event in the log.
func (e Event) entry(register uint32, hash crypto.Hash) ([]byte, error) {
	algorithm, ok := algorithmOf(hash)
	if !ok {
		return nil, fmt.Errorf("register hash %v: %w", hash, errdefs.ErrNotImplemented)
	}
	data := e.tagged()
	b := binary.LittleEndian.AppendUint32(nil, register)
	b = binary.LittleEndian.AppendUint32(b, eventTag)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint16(b, algorithm)
	b = append(b, sum(hash, data)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...), nil
}

func sum(hash crypto.Hash, parts ...[]byte) []byte {
	h := hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// The TCG algorithm registry's numbers.
const (
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
	algSM3    = 0x0012
)

func algorithmOf(hash crypto.Hash) (uint16, bool) {
	switch hash {
	case crypto.SHA256:
		return algSHA256, true
	case crypto.SHA384:
		return algSHA384, true
	case crypto.SHA512:
		return algSHA512, true
	default:
		return 0, false
	}
}

// digestSize is the length of an algorithm's digest in bytes, 0 for one that is
// not known.
func digestSize(algorithm uint16) int {
	switch algorithm {
	case algSHA256, algSM3:
		return 32
	case algSHA384:
		return 48
	case algSHA512:
		return 64
	default:
		return 0
	}
}
