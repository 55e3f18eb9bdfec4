// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package sigstore

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Log is a transparency log that is trusted: of signatures (Rekor) or of
// certificates.
type Log struct {
	Key crypto.PublicKey
	// ID is what the log calls itself. nil, for logs of signatures alone, tries
	// the key on entries of any log.
	ID []byte
	// Origin is the name in the log's checkpoints; empty accepts any that its
	// key signed.
	Origin string
	// Start and End bound the times for which the log is trusted; zero is
	// unbounded.
	Start, End time.Time
}

// covers reports whether the log is trusted for what it signed at t.
func (l Log) covers(t time.Time) bool { return within(t, l.Start, l.End) }

func within(t, start, end time.Time) bool {
	return (start.IsZero() || !t.Before(start)) && (end.IsZero() || !t.After(end))
}

// entry is what a bundle claims that a log holds.
type entry struct {
	logID      []byte
	index      int64
	integrated int64 // seconds of Unix time, 0 if the log has no such time
	body       []byte
	kind       string // of a bundle's entry, "" where it was not said
	version    string
	promise    []byte     // signed entry timestamp
	proof      *inclusion // nil if there is none
}

type inclusion struct {
	index      uint64
	hashes     [][]byte
	checkpoint string
}

// verify checks that one of the logs holds the entry, or promised to, and that
// the entry is about this signature. It returns the time that the log vouches
// for; zero if it vouches for none. Whatever the entry carries must hold.
func (e *entry) verify(logs []Log, about *record) (time.Time, error) {
	if e.promise == nil && e.proof == nil {
		return time.Time{}, errors.New("log entry with neither promise nor proof")
	}
	if err := e.matches(about); err != nil {
		return time.Time{}, err
	}
	err := errors.New("the log entry is of a transparency log that is not trusted")
	for _, l := range logs {
		if l.ID != nil && !bytes.Equal(l.ID, e.logID) {
			continue
		}
		var t time.Time
		if t, err = e.verifyBy(l); err == nil {
			return t, nil
		}
	}
	return time.Time{}, err
}

func (e *entry) verifyBy(l Log) (time.Time, error) {
	var t time.Time
	if e.promise != nil {
		// Only the promise signs the time.
		if err := verifyBlob(l.Key, e.promised(), e.promise); err != nil {
			return t, errors.New("the log entry's signed timestamp is not of a trusted transparency log")
		}
		t = time.Unix(e.integrated, 0)
		if e.integrated <= 0 || !l.covers(t) {
			return t, errors.New("the log entry's time is outside of the log's validity")
		}
	}
	if e.proof == nil {
		return t, nil
	}
	c, err := parseCheckpoint(e.proof.checkpoint)
	if err != nil {
		return t, err
	}
	if err := c.verify(l); err != nil {
		return t, err
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(e.body)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, e.proof.index, c.size, leaf, e.proof.hashes, c.root); err != nil {
		return t, errors.New("the log entry's inclusion proof does not lead to the signed tree head")
	}
	return t, nil
}

// promised is the canonical JSON that the log signs: sorted members, no blank.
func (e *entry) promised() []byte {
	return fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(e.body), e.integrated, e.logID, e.index)
}
