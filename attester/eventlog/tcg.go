// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/containerd/errdefs"
)

const (
	noAction  = 3  // EV_NO_ACTION, in the register's place of a log's header too
	sha1Size  = 20 // of the header's digest field
	endMark   = math.MaxUint64
	maxHashes = 8 // in one entry
)

// header is what a log begins with where firmware left none: a TCG_PCR_EVENT
// whose event lists SHA-384 and SM3 as the digests to come, with the signature
// and version fields empty.
func header() []byte {
	b := make([]byte, 0, 69)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, noAction)
	b = append(b, make([]byte, sha1Size)...)
	b = binary.LittleEndian.AppendUint32(b, 37)
	b = append(b, make([]byte, 24)...)
	b = binary.LittleEndian.AppendUint32(b, 2)
	for _, n := range []uint16{algSHA384, 48, algSM3, 32} {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return append(b, 0)
}

// Join makes one log for a verifier out of the firmware's log and the entries
// that this package wrote. It cuts off the padding of the former and ends with
// the mark that verifiers look for. Without any event the result is nil.
func Join(firmware, entries []byte) ([]byte, error) {
	var log []byte
	if len(firmware) > 0 {
		n, err := extent(firmware, nil)
		if err != nil {
			return nil, fmt.Errorf("firmware event log: %w", err)
		}
		log = append(log, firmware[:n]...)
	}
	if len(entries) > 0 && len(log) == 0 {
		log = header()
	}
	if len(log) == 0 {
		return nil, nil
	}
	log = append(log, entries...)
	return binary.LittleEndian.AppendUint64(log, endMark), nil
}

// Replay returns what a log makes of the registers, beginning with zeros, by
// register number. The log may end with the mark, or where its bytes end.
func Replay(log []byte, hash crypto.Hash) (map[uint32][]byte, error) {
	registers := make(map[uint32][]byte)
	_, err := extent(log, func(e entry) error {
		if e.kind == noAction {
			return nil
		}
		digest := e.digest(hash)
		if digest == nil {
			return fmt.Errorf("entry without a %v digest: %w", hash, errdefs.ErrInvalidArgument)
		}
		was, ok := registers[e.register]
		if !ok {
			was = make([]byte, hash.Size())
		}
		registers[e.register] = sum(hash, was, digest)
		return nil
	})
	return registers, err
}

// entry is one entry of a log; its slices are of the log's bytes.
type entry struct {
	register, kind uint32
	digests        []hashed
	data           []byte
}

type hashed struct {
	algorithm uint16
	digest    []byte
}

func (e entry) digest(hash crypto.Hash) []byte {
	algorithm, _ := algorithmOf(hash)
	for _, d := range e.digests {
		if d.algorithm == algorithm {
			return d.digest
		}
	}
	return nil
}

// extent returns how many bytes of the log are its header and entries, and
// gives each entry to visit.
func extent(log []byte, visit func(entry) error) (int, error) {
	r := reader{rest: log}
	if r.skipHeader(); r.short {
		return 0, fmt.Errorf("it ends within its header: %w", errdefs.ErrInvalidArgument)
	}
	return r.entries(len(log), visit)
}

func (r *reader) skipHeader() {
	r.uint32()
	if r.uint32() != noAction {
		r.short = true // every crypto agile log begins so
		return
	}
	r.take(sha1Size)
	r.take(int(r.uint32()))
}

func (r *reader) entries(size int, visit func(entry) error) (int, error) {
	for n := 0; ; n++ {
		at := size - len(r.rest)
		if len(r.rest) == 0 || r.atEnd() {
			return at, nil
		}
		e, err := r.entry()
		if err == nil && r.short {
			err = fmt.Errorf("it is cut off: %w", errdefs.ErrInvalidArgument)
		}
		if err == nil && visit != nil {
			err = visit(e)
		}
		if err != nil {
			return 0, fmt.Errorf("entry %d at byte %d: %w", n, at, err)
		}
	}
}

// reader takes little-endian numbers from the front of rest. After a read
// beyond the end it is short, and all it returns is zero.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n < 0 || n > len(r.rest) {
		r.short = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

// atEnd reports whether the mark or padding follows.
func (r *reader) atEnd() bool {
	if len(r.rest) < 8 {
		return false
	}
	n := binary.LittleEndian.Uint64(r.rest)
	return n == endMark || n == 0
}

func (r *reader) entry() (entry, error) {
	e := entry{register: r.uint32(), kind: r.uint32()}
	n := r.uint32()
	if n > maxHashes {
		return entry{}, fmt.Errorf("%d digests: %w", n, errdefs.ErrInvalidArgument)
	}
	for range n {
		algorithm := r.uint16()
		size := digestSize(algorithm)
		if size == 0 && !r.short {
			return entry{}, fmt.Errorf("digest algorithm %#x: %w", algorithm, errdefs.ErrNotImplemented)
		}
		e.digests = append(e.digests, hashed{algorithm, r.take(size)})
	}
	e.data = r.take(int(r.uint32()))
	return e, nil
}
