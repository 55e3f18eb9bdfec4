// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

// Package progress is what the puller tells about a running pull: events, and a
// feed that carries them to any number of watchers without ever waiting for one.
//
// An event names images, layers and digests, sizes and times; nothing in it is
// secret to those who may ask for a pull, and nobody should believe one who is
// not the puller itself. The package imports only the standard library and the
// digest type, so that a client of the puller links no more than that.
package progress

import (
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// Stage is a step of a pull, in errors, events, logs and metrics alike.
type Stage string

// The stages. Those of an image are pull, which is all of it, resolve, policy
// and measure; the others are of a layer, in their order.
const (
	Pull       Stage = "pull"
	Resolve    Stage = "resolve"
	Policy     Stage = "policy"
	Measure    Stage = "measure"
	Fetch      Stage = "fetch"
	Unwrap     Stage = "unwrap"
	Decrypt    Stage = "decrypt"
	Decompress Stage = "decompress"
	Apply      Stage = "apply"
	Verify     Stage = "verify"
	Commit     Stage = "commit"
)

// Stages are all of them, in their order.
func Stages() []Stage {
	return []Stage{Pull, Resolve, Policy, Measure, Fetch, Unwrap, Decrypt, Decompress, Apply, Verify, Commit}
}

// State says what of a stage an event tells.
type State string

// The states. A stage that starts also ends; in between there may be any number
// of updates (Bytes have grown) and retries (Err is what went wrong).
const (
	Start  State = "start"
	Update State = "update"
	Retry  State = "retry"
	End    State = "end"
)

// ErrAborted is the end of a stage that another one's failure, or the end of the
// pull, has ended. Where a layer fails exactly one of its stages ends with
// another error.
var ErrAborted = errors.New("aborted")

// Event is one step of a pull.
type Event struct {
	// Time is when it happened, with the monotonic clock unless it came over a
	// wire.
	Time time.Time
	// Image is the name that the caller gave, in its canonical spelling, and
	// Manifest the digest of the platform's manifest, empty until it is known.
	Image    string
	Manifest digest.Digest
	// Layer is the chain id and Blob the digest of a layer; both are empty at
	// the stages of an image.
	Layer, Blob digest.Digest
	Stage       Stage
	State       State
	// Bytes of the blob are fetched, of Total; 0 at stages that do not count
	// them. Unpacked is what the layer takes on disk, at the end of commit.
	Bytes, Total, Unpacked int64
	// Added is how many of Bytes have come since the event before.
	Added int64
	// Took is how long the stage took, at its end.
	Took time.Duration
	// Cached is set at the end of commit where nothing was fetched for this
	// layer: it was in the store, or its content came from an equal one.
	Cached bool
	// Err is why a stage is tried again, or ended without success.
	Err error
}
