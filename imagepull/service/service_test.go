// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/coffer-cc/coffer/imagepull/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	manifest = digest.Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	chain    = digest.Digest("sha256:2222222222222222222222222222222222222222222222222222222222222222")
)

// puller answers with what its function says.
type puller struct {
	pull func(ctx context.Context) error
}

func (p puller) PullLayer(ctx context.Context, image string, m, c digest.Digest) (string, int64, int64, error) {
	if image != "host/a:b" || m != manifest || c != chain {
		return "", 0, 0, fmt.Errorf("got %s %s %s: %w", image, m, c, errdefs.ErrInternal)
	}
	return "/path", 12, 3, p.pull(ctx)
}

func (p puller) RemoveLayer(ctx context.Context, c digest.Digest) error {
	if c != chain {
		return errdefs.ErrInternal
	}
	return p.pull(ctx)
}

func (p puller) AdmitImage(ctx context.Context, image string, m, index digest.Digest) error {
	if image != "host/a:b" || m != manifest || index != "" && index != chain {
		return fmt.Errorf("got %s %s %s: %w", image, m, index, errdefs.ErrInternal)
	}
	return p.pull(ctx)
}

func (p puller) AdmitsAll() bool { return p.pull(context.Background()) == nil }

// serve returns how to end the server.
func serve(t *testing.T, socket string, p puller) func() {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.RegisterLayerPuller(server, p)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.WithoutCancel(t.Context()), listener) }()
	return func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	}
}

func client(t *testing.T) (*service.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	c := service.NewClient("unix://" + socket)
	t.Cleanup(func() { _ = c.Close() })
	return c, socket
}

func TestCallAndRestart(t *testing.T) {
	t.Parallel()
	c, socket := client(t)
	ok := puller{pull: func(context.Context) error { return nil }}
	for range 2 { // the second server is the guest after a restart
		_, _, _, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain)
		want := "coffer-guest is not running: no answer on " + socket + "; start it (systemctl start coffer-guest)"
		if !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), want) {
			t.Fatalf("got %v", err)
		}
		stop := serve(t, socket, ok)
		path, size, inodes, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain)
		if path != "/path" || size != 12 || inodes != 3 || err != nil {
			t.Fatalf("got %q %d %d %v", path, size, inodes, err)
		}
		if err := c.RemoveLayer(t.Context(), chain); err != nil {
			t.Fatal(err)
		}
		stop()
	}
}

func TestAdmission(t *testing.T) {
	t.Parallel()
	c, socket := client(t)
	if _, err := c.AdmitsAll(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without a guest: %v", err)
	}
	stop := serve(t, socket, puller{pull: func(context.Context) error { return nil }})
	for _, index := range []digest.Digest{"", chain} {
		if err := c.AdmitImage(t.Context(), "host/a:b", manifest, index); err != nil {
			t.Error(err)
		}
	}
	if all, err := c.AdmitsAll(t.Context()); err != nil || !all {
		t.Errorf("got %v, %v", all, err)
	}
	stop()
	denied := fmt.Errorf("policy image host/a:b: image policy: rejected: %w", errdefs.ErrPermissionDenied)
	defer serve(t, socket, puller{pull: func(context.Context) error { return denied }})()
	if err := c.AdmitImage(t.Context(), "host/a:b", manifest, ""); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "image policy: rejected") {
		t.Errorf("got %v", err)
	}
	if all, err := c.AdmitsAll(t.Context()); err != nil || all {
		t.Errorf("got %v, %v", all, err)
	}
}

// BenchmarkAdmitsAll is what each container's snapshot costs without a policy.
func BenchmarkAdmitsAll(b *testing.B) {
	server, err := ttrpc.NewServer()
	if err != nil {
		b.Fatal(err)
	}
	service.RegisterLayerPuller(server, puller{pull: func(context.Context) error { return nil }})
	socket := filepath.Join(b.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.WithoutCancel(b.Context()), listener) }()
	defer func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			b.Error(err)
		}
	}()
	c := service.NewClient(socket)
	for b.Loop() {
		if all, err := c.AdmitsAll(b.Context()); err != nil || !all {
			b.Fatal(err)
		}
	}
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]error{
		"unauthenticated":     errdefs.ErrUnauthenticated,
		"permission denied":   errdefs.ErrPermissionDenied,
		"data loss":           errdefs.ErrDataLoss,
		"unavailable":         errdefs.ErrUnavailable,
		"not found":           errdefs.ErrNotFound,
		"invalid argument":    errdefs.ErrInvalidArgument,
		"not implemented":     errdefs.ErrNotImplemented,
		"resource exhausted":  errdefs.ErrResourceExhausted,
		"failed precondition": errdefs.ErrFailedPrecondition,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, socket := client(t)
			defer serve(t, socket, puller{pull: func(context.Context) error { return fmt.Errorf("who: %w: what: %w", io.ErrUnexpectedEOF, class) }})()
			_, _, _, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain)
			if !errors.Is(err, class) || !strings.HasPrefix(err.Error(), "who: unexpected EOF: what") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			if err := c.RemoveLayer(t.Context(), chain); !errors.Is(err, class) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCancelReachesThePuller(t *testing.T) {
	t.Parallel()
	c, socket := client(t)
	started, ended := make(chan struct{}), make(chan struct{})
	defer serve(t, socket, puller{pull: func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}})()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, _, _, err := c.PullLayer(ctx, "host/a:b", manifest, chain); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
}

func TestGuestDiesDuringTheCall(t *testing.T) {
	t.Parallel()
	c, socket := client(t)
	started, stopped := make(chan struct{}), make(chan struct{})
	stop := serve(t, socket, puller{pull: func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		return ctx.Err()
	}})
	go func() { <-started; stop(); close(stopped) }()
	_, _, _, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain)
	<-stopped
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "went away") {
		t.Errorf("got %v", err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	c, socket := client(t)
	started := make(chan struct{})
	defer serve(t, socket, puller{pull: func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		return ctx.Err()
	}})()
	go func() { <-started; _ = c.Close() }()
	if _, _, _, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain); !errdefs.IsUnavailable(err) {
		t.Errorf("running call: %v", err)
	}
	if _, _, _, err := c.PullLayer(t.Context(), "host/a:b", manifest, chain); !errdefs.IsUnavailable(err) {
		t.Errorf("later call: %v", err)
	}
}
