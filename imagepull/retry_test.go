// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-cc/coffer/imagepull/registry"
)

func testRetries(again func(error)) *retries {
	return newRetries(Options{Tries: 8, RetryDelay: time.Second}, slog.New(slog.DiscardHandler), again)
}

// TestPauses has each pause double, vary, and end at 30 s and a half.
func TestPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		told := 0
		r := testRetries(func(error) { told++ })
		away := fmt.Errorf("away: %w", errdefs.ErrUnavailable)
		jitter := false
		for i := range 7 {
			began, mean := time.Now(), min(time.Second<<i, maxPause)
			if err := r.wait(t.Context(), away); err != nil {
				t.Fatal(err)
			}
			pause := time.Since(began)
			if pause < mean/2 || pause > mean*3/2 {
				t.Errorf("pause %d is %s, want about %s", i, pause, mean)
			}
			jitter = jitter || pause != mean
		}
		if err := r.wait(t.Context(), away); !errdefs.IsUnavailable(err) || told != 7 || !jitter {
			t.Errorf("got %v after %d retries", err, told)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asks := func(d time.Duration) error { return &registry.Error{Temporary: true, RetryAfter: d} }
		r, began := testRetries(func(error) {}), time.Now()
		if err := r.wait(t.Context(), asks(17*time.Second)); err != nil || time.Since(began) != 17*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		began = time.Now()
		if err := r.wait(t.Context(), asks(maxPause+1)); err == nil || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.wait(ctx, asks(10*time.Second)); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if err := r.wait(t.Context(), errdefs.ErrNotFound); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})
}
