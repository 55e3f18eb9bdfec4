// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package cdh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/cdh"
	"github.com/coffer-cc/coffer/cdh/keywrap"
)

const (
	kid            = "kbs:///default/key/1"
	privateOptions = `{"symkey":"c2VjcmV0"}`
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keyService is a key service of one key: a func of the n-th fetch.
type keyService struct {
	fetches atomic.Int32
	fetch   func(ctx context.Context, n int, uri string) ([]byte, error)
}

func (s *keyService) GetResource(ctx context.Context, uri string) ([]byte, error) {
	return s.fetch(ctx, int(s.fetches.Add(1)), uri)
}

func newHub(t *testing.T, opts cdh.Options, fetch func(ctx context.Context, n int, uri string) ([]byte, error)) (*cdh.Hub, *keyService) {
	t.Helper()
	s := &keyService{fetch: fetch}
	h := cdh.NewHub(s, opts)
	t.Cleanup(h.Close)
	return h, s
}

func serve(key byte) func(context.Context, int, string) ([]byte, error) {
	return func(_ context.Context, _ int, uri string) ([]byte, error) {
		if uri != kid {
			return nil, fmt.Errorf("%w: %s", errdefs.ErrNotFound, uri)
		}
		return kek(key), nil
	}
}

func kek(b byte) []byte { return bytes.Repeat([]byte{b}, keywrap.KEKSize) }

func packet(t *testing.T, kid string, key byte) []byte {
	t.Helper()
	p, err := keywrap.Wrap(kek(key), kid, []byte(privateOptions), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustUnwrap(t *testing.T, h *cdh.Hub, packet []byte) {
	t.Helper()
	if got, err := h.UnwrapKey(t.Context(), packet); err != nil || string(got) != privateOptions {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
}

func TestUnwrapFetchesOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		h, s := newHub(t, cdh.Options{}, func(ctx context.Context, n int, uri string) ([]byte, error) {
			<-release
			return serve(1)(ctx, n, uri)
		})
		p := packet(t, kid, 1)
		var waiters sync.WaitGroup
		for range 50 {
			waiters.Go(func() { mustUnwrap(t, h, p) })
		}
		synctest.Wait()
		close(release)
		waiters.Wait()
		mustUnwrap(t, h, p)
		if n := s.fetches.Load(); n != 1 {
			t.Errorf("the key was fetched %d times", n)
		}
	})
}

// TestFirstWaiterLeaves cancels the call that started the fetch.
func TestFirstWaiterLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		h, s := newHub(t, cdh.Options{}, func(ctx context.Context, n int, uri string) ([]byte, error) {
			select {
			case <-release:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return serve(1)(ctx, n, uri)
		})
		p := packet(t, kid, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var first, second sync.WaitGroup
		first.Go(func() {
			if _, err := h.UnwrapKey(ctx, p); !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v, want canceled", err)
			}
		})
		synctest.Wait()
		second.Go(func() { mustUnwrap(t, h, p) })
		synctest.Wait()
		cancel()
		first.Wait()
		close(release)
		second.Wait()
		if n := s.fetches.Load(); n != 1 {
			t.Errorf("the key was fetched %d times", n)
		}
	})
}

// TestLastWaiterLeaves wants the fetch to end when nobody needs it, and the
// next call to start a new one.
func TestLastWaiterLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		h, _ := newHub(t, cdh.Options{}, func(ctx context.Context, n int, uri string) ([]byte, error) {
			if n == 1 {
				<-ctx.Done()
				close(ended)
				return kek(1), nil // too late
			}
			return serve(1)(ctx, n, uri)
		})
		p := packet(t, kid, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var first sync.WaitGroup
		first.Go(func() {
			if _, err := h.UnwrapKey(ctx, p); !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v, want canceled", err)
			}
		})
		synctest.Wait()
		cancel()
		first.Wait()
		<-ended
		mustUnwrap(t, h, p)
	})
}

func TestKeyExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var last []byte
		h, s := newHub(t, cdh.Options{KEKLifetime: time.Minute}, func(context.Context, int, string) ([]byte, error) {
			last = kek(1)
			return last, nil
		})
		p := packet(t, kid, 1)
		mustUnwrap(t, h, p)
		<-time.After(59 * time.Second) // virtual time
		mustUnwrap(t, h, p)
		if n := s.fetches.Load(); n != 1 {
			t.Errorf("the key was fetched %d times within its lifetime", n)
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		if !bytes.Equal(last, make([]byte, keywrap.KEKSize)) {
			t.Error("the expired key was not cleared")
		}
		mustUnwrap(t, h, p)
		if n := s.fetches.Load(); n != 2 {
			t.Errorf("the key was fetched %d times, want 2", n)
		}
		h.Close()
		if !bytes.Equal(last, make([]byte, keywrap.KEKSize)) {
			t.Error("the key was not cleared on close")
		}
		if _, err := h.UnwrapKey(t.Context(), p); !errdefs.IsUnavailable(err) {
			t.Errorf("after close: got error %v, want unavailable", err)
		}
	})
}

func TestCloseEndsFetch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, _ := newHub(t, cdh.Options{}, func(ctx context.Context, _ int, _ string) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		p := packet(t, kid, 1)
		var waiter sync.WaitGroup
		waiter.Go(func() {
			if _, err := h.UnwrapKey(t.Context(), p); err == nil {
				t.Error("a key was unwrapped")
			}
		})
		synctest.Wait()
		h.Close()
		waiter.Wait()
	})
}

func TestReplacedKey(t *testing.T) {
	t.Parallel()
	h, s := newHub(t, cdh.Options{}, func(_ context.Context, n int, _ string) ([]byte, error) {
		return kek(byte(n)), nil
	})
	mustUnwrap(t, h, packet(t, kid, 1))
	mustUnwrap(t, h, packet(t, kid, 2)) // the cached key does not fit; the new one does
	if _, err := h.UnwrapKey(t.Context(), packet(t, kid, 9)); !errdefs.IsDataLoss(err) {
		t.Errorf("got error %v, want data loss", err)
	}
	if n := s.fetches.Load(); n != 3 {
		t.Errorf("the key was fetched %d times, want 3", n)
	}
}

func TestUnwrapErrors(t *testing.T) {
	t.Parallel()
	denied := fmt.Errorf("kbs http://kbs: policy denied: %w", errdefs.ErrPermissionDenied)
	for _, tc := range []struct {
		name, packet string
		fetch        func(context.Context, int, string) ([]byte, error)
		is           func(error) bool
		text         string
		fetches      int32
	}{
		{"malformed", `{`, serve(1), errdefs.IsInvalidArgument, "malformed", 0},
		{
			"other provider", `{"kid":"k9","provider":"aliyun","wrapped_data":"AA=="}`,
			serve(1), errdefs.IsNotImplemented, `k9: not implemented: unsupported: provider "aliyun"`, 0,
		},
		{
			"counter mode", `{"kid":"kbs:///a/b/c","wrapped_data":"AA==","iv":"AA==","wrap_type":"A256CTR"}`,
			serve(1), errdefs.IsNotImplemented, "A256CTR has no integrity", 0,
		},
		{"wrong key", string(packet(t, kid, 2)), serve(1), errdefs.IsDataLoss, "key " + kid + " does not unwrap this layer", 1},
		{
			"short key", string(packet(t, kid, 2)),
			func(context.Context, int, string) ([]byte, error) { return []byte("hex"), nil },
			errdefs.IsDataLoss, "has 3 bytes", 1,
		},
		{
			"empty key", string(packet(t, kid, 2)),
			func(context.Context, int, string) ([]byte, error) { return nil, nil },
			errdefs.IsDataLoss, "has 0 bytes", 1,
		},
		{"no key", string(packet(t, "kbs:///default/key/2", 1)), serve(1), errdefs.IsNotFound, "get key kbs:///default/key/2", 1},
		{
			"denied", string(packet(t, kid, 1)),
			func(context.Context, int, string) ([]byte, error) { return nil, denied },
			errdefs.IsPermissionDenied, "policy denied", 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h, s := newHub(t, cdh.Options{}, tc.fetch)
			_, err := h.UnwrapKey(t.Context(), []byte(tc.packet))
			if !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got error %v, want %q", err, tc.text)
			}
			if n := s.fetches.Load(); n != tc.fetches {
				t.Errorf("the key was fetched %d times, want %d", n, tc.fetches)
			}
		})
	}
}

// TestFailureIsNotKept wants a retry to work once the cause is gone.
func TestFailureIsNotKept(t *testing.T) {
	t.Parallel()
	h, _ := newHub(t, cdh.Options{}, func(ctx context.Context, n int, uri string) ([]byte, error) {
		switch n {
		case 1:
			return nil, errdefs.ErrUnavailable
		case 2:
			return kek(7), nil
		}
		return serve(1)(ctx, n, uri)
	})
	p := packet(t, kid, 1)
	if _, err := h.UnwrapKey(t.Context(), p); !errdefs.IsUnavailable(err) {
		t.Errorf("got error %v, want unavailable", err)
	}
	if _, err := h.UnwrapKey(t.Context(), p); !errdefs.IsDataLoss(err) {
		t.Errorf("got error %v, want data loss", err)
	}
	mustUnwrap(t, h, p)
}

// TestKIDWithoutScheme takes the names that some key providers write.
func TestKIDWithoutScheme(t *testing.T) {
	t.Parallel()
	h, _ := newHub(t, cdh.Options{}, serve(1))
	mustUnwrap(t, h, packet(t, "/default/key/1", 1))
}

func TestGetResource(t *testing.T) {
	t.Parallel()
	h, s := newHub(t, cdh.Options{}, serve(1))
	for range 2 {
		if b, err := h.GetResource(t.Context(), kid); err != nil || !bytes.Equal(b, kek(1)) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
	}
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("the resource was fetched %d times: it must not be cached", n)
	}
	if _, err := h.GetResource(t.Context(), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got error %v, want invalid argument", err)
	}
	if _, err := h.GetResource(t.Context(), "kbs:///x/y/z"); !errdefs.IsNotFound(err) {
		t.Errorf("got error %v, want not found", err)
	}
}
