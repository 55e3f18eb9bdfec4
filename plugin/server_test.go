// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broken answers Prepare with err, and panics in Stat and Walk.
type broken struct {
	snapshots.Snapshotter
	err error
}

func (b broken) Prepare(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, b.err
}

func (broken) Stat(context.Context, string) (snapshots.Info, error) {
	panic("stat") //nolint:forbidigo // what the test is about
}

func (b broken) Walk(_ context.Context, _ snapshots.WalkFunc, filters ...string) error {
	if len(filters) > 0 {
		panic("walk") //nolint:forbidigo // what the test is about
	}
	return b.err
}

func TestErrorsKeepTheirClass(t *testing.T) {
	t.Parallel()
	for _, class := range []error{
		errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss, errdefs.ErrUnavailable,
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrResourceExhausted,
	} {
		t.Run(class.Error(), func(t *testing.T) {
			t.Parallel()
			text := "kbs http://k: rule r of policy p: expected 1, got 2"
			remote, stop, err := serve(t.TempDir(), broken{err: fmt.Errorf("%s: %w: %w", text, io.ErrUnexpectedEOF, class)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { noError(t, stop()) })
			_, err = remote.Prepare(t.Context(), "key", "")
			wantError(t, err, class, text)
			err = remote.Walk(t.Context(), nil)
			wantError(t, err, class, text)
		})
	}
}

func TestPanicFailsOneCall(t *testing.T) {
	t.Parallel()
	remote, stop, err := serve(t.TempDir(), broken{err: errdefs.ErrNotFound})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, stop()) })
	_, err = remote.Stat(t.Context(), "key")
	wantError(t, err, errdefs.ErrInternal, "failed unexpectedly")
	wantError(t, remote.Walk(t.Context(), nil, "kind==active"), errdefs.ErrInternal, "failed unexpectedly")
	_, err = remote.Prepare(t.Context(), "key", "")
	wantError(t, err, errdefs.ErrNotFound, "")
}

func wantError(t *testing.T, err, class error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") || !errors.Is(errdefs.Resolve(err), class) {
		t.Errorf("got error %v, want class %v and text %q", err, class, text)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
