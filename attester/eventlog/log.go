// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Registers are the runtime measurement registers of a TEE.
type Registers interface {
	// RegisterHash is the hash that registers are extended with.
	RegisterHash() crypto.Hash
	// Register is the number, in the log, of the register that stands for a
	// TPM's platform configuration register.
	Register(pcr uint64) uint32
	// ReadRegister returns a register's value.
	ReadRegister(register uint32) ([]byte, error)
	// ExtendRegister makes a register the hash of its value and digest.
	ExtendRegister(register uint32, digest []byte) error
}

// The names are those of guest-components, so that either may go on with what
// the other began.
const (
	logName     = "eventlog"
	journalName = ".wal_event_entry"
)

// Log is an event log and the registers it belongs to. It serves one call at a
// time.
type Log struct {
	dir       string
	registers Registers
	broken    error // set once log and register may differ
}

// Open opens the log in dir, which it makes if need be. What a crash left half
// done is completed. The error is DataLoss where the log or its journal is
// damaged, or a register was extended by somebody else in between: evidence of
// this boot then can't be replayed, and the machine must be restarted.
func Open(dir string, registers Registers) (*Log, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what happened is no secret
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &Log{dir: dir, registers: registers}
	for _, unfinished := range l.unfinished() {
		_ = os.Remove(unfinished) // it is in nobody's way
	}
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("event log %s: %w", l.path(), err)
	}
	entries, err := l.Entries()
	if err != nil {
		return nil, err
	}
	n, err := (&reader{rest: entries}).entries(len(entries), nil)
	if err == nil && n != len(entries) {
		err = fmt.Errorf("byte %d: %w: no entry", n, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("event log %s is damaged, restart the machine: %w: %w", l.path(), errdefs.ErrDataLoss, err)
	}
	return l, nil
}

func (l *Log) path() string    { return filepath.Join(l.dir, logName) }
func (l *Log) journal() string { return filepath.Join(l.dir, journalName) }

// unfinished are journals that were never begun: a crash came first.
func (l *Log) unfinished() []string {
	found, _ := filepath.Glob(filepath.Join(l.dir, journalName+"-*")) // the pattern is well formed
	return found
}

// Entries returns the log's bytes; nil before the first event.
func (l *Log) Entries() ([]byte, error) {
	b, err := os.ReadFile(l.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("event log: %w", err)
	}
	return b, nil
}

// size is the log's length in bytes.
func (l *Log) size() (int64, error) {
	info, err := os.Stat(l.path())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Extend measures an event into the register that stands for pcr and logs it.
// Both or neither are done, also across a crash: a journal is written first.
func (l *Log) Extend(e Event, pcr uint64) error {
	if l.broken != nil {
		return l.broken
	}
	if err := e.check(); err != nil {
		return err
	}
	hash, register := l.registers.RegisterHash(), l.registers.Register(pcr)
	entry, err := e.entry(register, hash)
	if err != nil {
		return err
	}
	was, err := l.registers.ReadRegister(register)
	if err != nil {
		return fmt.Errorf("measure %s: %w", e.Operation, err)
	}
	offset, err := l.size()
	if err != nil {
		return fmt.Errorf("measure %s: %w", e.Operation, err)
	}
	digest := e.Digest(hash)
	next := record{offset: offset, expected: sum(hash, was, digest), register: register, event: e}
	if err := l.write(next); err != nil {
		return fmt.Errorf("measure %s: %w", e.Operation, err)
	}
	if err := l.registers.ExtendRegister(register, digest); err != nil {
		err = fmt.Errorf("measure %s: %w", e.Operation, err)
		if is, readErr := l.registers.ReadRegister(register); readErr == nil && bytes.Equal(is, was) {
			return errors.Join(err, os.Remove(l.journal())) // nothing has happened
		}
		return l.breakOff(err) // the journal tells the next start what to do
	}
	if err := l.complete(next, entry); err != nil {
		return l.breakOff(fmt.Errorf("measure %s: %w", e.Operation, err))
	}
	return nil
}

func (l *Log) breakOff(err error) error {
	l.broken = fmt.Errorf("%w; the event log is closed until the agent is restarted", err)
	return l.broken
}

// complete writes an entry where it belongs and ends the journal.
func (l *Log) complete(r record, entry []byte) error {
	f, err := os.OpenFile(l.path(), os.O_CREATE|os.O_RDWR, 0o644) //nolint:gosec // what happened is no secret
	if err != nil {
		return err
	}
	err = f.Truncate(r.offset)
	if err == nil {
		_, err = f.WriteAt(entry, r.offset)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Remove(l.journal())
}

// recover completes what the journal says was begun.
func (l *Log) recover() error {
	b, err := os.ReadFile(l.journal())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	hash := l.registers.RegisterHash()
	r, err := parseRecord(b, hash.Size(), l.registers)
	if err != nil {
		return fmt.Errorf("journal %s: %w: %w", l.journal(), errdefs.ErrDataLoss, err)
	}
	entry, err := r.event.entry(r.register, hash)
	if err != nil {
		return err
	}
	size, err := l.size()
	if err != nil {
		return err
	}
	if size < r.offset {
		return fmt.Errorf("%w: the log lacks entries before the last, restart the machine", errdefs.ErrDataLoss)
	}
	is, err := l.registers.ReadRegister(r.register)
	if err != nil {
		return err
	}
	if !bytes.Equal(is, r.expected) {
		digest := r.event.Digest(hash)
		if !bytes.Equal(sum(hash, is, digest), r.expected) {
			return fmt.Errorf("%w: register %d was extended by somebody else, restart the machine", errdefs.ErrDataLoss, r.register)
		}
		if err := l.registers.ExtendRegister(r.register, digest); err != nil {
			return err
		}
	}
	return l.complete(r, entry)
}

// record is the journal: an event under way. In bytes it is the entry's offset
// (8, big endian), the register's value once it is extended, and the event's
// text; then, unless the event goes to the default register, a zero byte and
// the register (4, big endian).
type record struct {
	offset   int64
	expected []byte
	register uint32
	event    Event
}

// DefaultPCR is the platform configuration register for events that name none.
const DefaultPCR = 17

func (l *Log) write(r record) (err error) {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.offset))
	b = append(append(b, r.expected...), r.event.text()...)
	if r.register != l.registers.Register(DefaultPCR) {
		b = binary.BigEndian.AppendUint32(append(b, 0), r.register)
	}
	// Never half a journal: under another name first.
	f, err := os.CreateTemp(l.dir, journalName+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), l.journal())
}

func parseRecord(b []byte, size int, registers Registers) (record, error) {
	if len(b) < 8+size {
		return record{}, fmt.Errorf("%d bytes: %w", len(b), errdefs.ErrInvalidArgument)
	}
	r := record{
		offset:   int64(binary.BigEndian.Uint64(b)),
		expected: b[8 : 8+size],
		register: registers.Register(DefaultPCR),
	}
	if r.offset < 0 || r.offset > 1<<40 {
		return record{}, fmt.Errorf("offset %d: %w", r.offset, errdefs.ErrInvalidArgument)
	}
	text, register, other := bytes.Cut(b[8+size:], []byte{0})
	if other {
		if len(register) != 4 {
			return record{}, fmt.Errorf("register of %d bytes: %w", len(register), errdefs.ErrInvalidArgument)
		}
		r.register = binary.BigEndian.Uint32(register)
	}
	var err error
	r.event, err = parseEvent(string(text))
	return r, err
}
