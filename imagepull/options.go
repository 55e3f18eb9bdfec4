// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"log/slog"
	"runtime"
	"time"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// The defaults of Options.
const (
	DefaultMaxDownloads    = 6
	DefaultTries           = 6
	DefaultRetryDelay      = time.Second
	DefaultVerdictLifetime = time.Minute
)

// Options of a Puller. The zero value is the default.
type Options struct {
	// Policy is asked on every pull, whether its layers are there or not; nil
	// allows every image.
	Policy ImagePolicy
	// VerdictLifetime is for how long the calls of PullLayer for one image
	// count as one pull: within it, a layer that is there costs no request and
	// no new question to Policy. PullImage always asks. 0 means
	// DefaultVerdictLifetime.
	VerdictLifetime time.Duration
	// Measure records each pull before anybody can use what was pulled; nil
	// records nothing.
	Measure Measurer
	// MaxDownloads is how many layers are downloaded at a time, over all
	// images; 0 means DefaultMaxDownloads. Images take turns.
	MaxDownloads int
	// MaxDownloadsPerImage is how many of them are one image's; 0 means one
	// fewer than MaxDownloads, so that an image of many large layers leaves
	// another one a place.
	MaxDownloadsPerImage int
	// MaxUnpacks is how many layers are decompressed and applied at a time,
	// over all images; 0 means DefaultMaxUnpacks. Images take turns.
	MaxUnpacks int
	// MaxUnpacksPerImage is how many of them are one image's; 0 means
	// MaxUnpacks.
	MaxUnpacksPerImage int
	// Tries is how often a request is made that fails for a passing reason
	// without 1 MiB of progress; 0 means DefaultTries. With the default pauses
	// between them that is about half a minute.
	Tries int
	// RetryDelay is the first pause before another try, about; it doubles each
	// time, up to 30 s, and is varied at random by half. A registry that names
	// a pause gets that one, up to 30 s. 0 means DefaultRetryDelay.
	RetryDelay time.Duration
	// VerifyBeforeUnpack keeps each blob in the store until its digest and MAC
	// hold, and only then decompresses and unpacks it. It costs the blob's size
	// in space and the overlap of download and unpacking in time.
	VerifyBeforeUnpack bool
	// Unpack bounds what a layer may unpack to.
	Unpack unpack.Options
	// MaxCompressionRatio is how many bytes of tar a layer may have for each
	// byte of its compressed form; 0 means decompress.DefaultMaxRatio.
	MaxCompressionRatio int64
	// Scratch is the directory for the writable layers of bundles; without one
	// PullImage is refused. Best on the file system of the store.
	Scratch string
	// Progress is told what happens, if it is set. It is called from many
	// goroutines at a time and must not block.
	Progress func(Event)
	// Logger gets one line for each pull, each retry, each verdict of Policy and
	// each layer that is parked; nil discards them.
	Logger *slog.Logger
}

// DefaultMaxUnpacks is one unpack for each CPU, between 2 and 8.
func DefaultMaxUnpacks() int { return min(max(runtime.GOMAXPROCS(0), 2), 8) }

// withDefaults fills in what is not set.
func (o Options) withDefaults() Options {
	set := func(n *int, def int) {
		if *n <= 0 {
			*n = def
		}
	}
	set(&o.MaxDownloads, DefaultMaxDownloads)
	set(&o.MaxDownloadsPerImage, max(o.MaxDownloads-1, 1))
	set(&o.MaxUnpacks, DefaultMaxUnpacks())
	set(&o.MaxUnpacksPerImage, o.MaxUnpacks)
	set(&o.Tries, DefaultTries)
	if o.RetryDelay <= 0 {
		o.RetryDelay = DefaultRetryDelay
	}
	if o.VerdictLifetime <= 0 {
		o.VerdictLifetime = DefaultVerdictLifetime
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Unpack.Logger == nil {
		o.Unpack.Logger = o.Logger
	}
	return o
}
