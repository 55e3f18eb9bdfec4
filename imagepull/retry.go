// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

// maxPause is the longest pause a registry may ask for; beyond it the caller
// hears of it instead of waiting.
const maxPause = 30 * time.Second

// retries counts failures in a row and paces the next try.
type retries struct {
	max      int
	failures int
	pace     *backoff.ExponentialBackOff
	log      *slog.Logger
	again    func(error) // is told of each failure that is tried again
}

func newRetries(opts Options, log *slog.Logger, again func(error)) *retries {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval = opts.RetryDelay
	pace.Multiplier = 2
	pace.MaxInterval = maxPause
	pace.Reset()
	return &retries{max: opts.Tries, pace: pace, log: log, again: again}
}

// reset forgets the failures so far, after progress.
func (r *retries) reset() {
	r.failures = 0
	r.pace.Reset()
}

// wait pauses before the next try. It returns an error where there is none:
// err itself, or the end of ctx.
func (r *retries) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !temporary(err) {
		return err
	}
	r.failures++
	if r.failures >= r.max {
		return fmt.Errorf("%w (gave up after %d tries)", err, r.failures)
	}
	pause := r.pace.NextBackOff()
	var e *registry.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		if pause = e.RetryAfter; pause > maxPause {
			return fmt.Errorf("%w (it asks to wait %s)", err, pause)
		}
	}
	r.log.WarnContext(ctx, "registry request is tried again", "err", err, "pause", pause, "failures", r.failures)
	r.again(err)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// do calls f until it succeeds or there is no use in it.
func (r *retries) do(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if err := r.wait(ctx, err); err != nil {
			return err
		}
	}
}
