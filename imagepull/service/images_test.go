// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/service"
	"github.com/coffer-cc/coffer/imagepull/store"
)

// images answers with what its fields say; its feed is real.
type images struct {
	progress.Feed
	err    error
	images []store.Image
	usage  store.Usage
	gc     store.Result
	calls  chan string
}

func (i *images) PullImage(_ context.Context, image, bundle string) (digest.Digest, error) {
	i.calls <- image + " " + bundle
	return manifest, i.err
}

func (i *images) RemoveImage(_ context.Context, bundle string) error {
	i.calls <- bundle
	return i.err
}

func (i *images) Images() []store.Image                    { return i.images }
func (i *images) Usage() (store.Usage, error)              { return i.usage, i.err }
func (i *images) GC(context.Context) (store.Result, error) { return i.gc, i.err }

func serveImages(t *testing.T, i *images) *service.Client {
	t.Helper()
	i.calls = make(chan string, 10)
	c, socket := client(t)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.RegisterImagePuller(server, i)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.WithoutCancel(t.Context()), listener) }()
	t.Cleanup(func() {
		_ = c.Close()
		_ = server.Close()
		if err := <-done; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return c
}

func TestImages(t *testing.T) {
	t.Parallel()
	i := &images{
		images: []store.Image{{
			ImageMeta: store.ImageMeta{Manifest: manifest, References: []string{"host/a:b", "host/a:c"}, Top: chain},
			Layers:    []digest.Digest{manifest, chain}, Size: 1 << 40, Exclusive: 12, LastUsed: time.Unix(1, 2), InUse: true,
		}},
		usage: store.Usage{Images: 1, Layers: 2, Bytes: 3, Inodes: 4, Limit: 5, Free: 6},
		gc:    store.Result{Images: []digest.Digest{chain}, Layers: 2, Bytes: 3, Inodes: 4},
	}
	c := serveImages(t, i)
	if got, err := c.PullImage(t.Context(), "host/a:b", "/bundle"); got != manifest || err != nil || <-i.calls != "host/a:b /bundle" {
		t.Errorf("got %s, %v", got, err)
	}
	if err := c.RemoveImage(t.Context(), "/bundle"); err != nil || <-i.calls != "/bundle" {
		t.Error(err)
	}
	list, usage, err := c.ListImages(t.Context())
	if diff := cmp.Diff(i.images, list); diff != "" || usage != i.usage || err != nil {
		t.Error(diff, usage, err)
	}
	result, err := c.GC(t.Context())
	if diff := cmp.Diff(i.gc, result); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestImageErrors(t *testing.T) {
	t.Parallel()
	i := &images{err: fmt.Errorf("policy image host/a:b: image policy: no: %w", errdefs.ErrPermissionDenied)}
	c := serveImages(t, i)
	_, pullErr := c.PullImage(t.Context(), "host/a:b", "/bundle")
	_, _, listErr := c.ListImages(t.Context())
	_, gcErr := c.GC(t.Context())
	for _, err := range []error{pullErr, listErr, gcErr, c.RemoveImage(t.Context(), "/bundle")} {
		if !errdefs.IsPermissionDenied(err) || err.Error() != "policy image host/a:b: image policy: no: permission denied" {
			t.Errorf("got %v", err)
		}
	}
}

// TestWatch has events of all images told, or of one.
func TestWatch(t *testing.T) {
	t.Parallel()
	for image, want := range map[string][]int64{"": {1, 2, 3, 4}, "host/a:b": {1, 3, 4}, "host/c:d": {2}, "host/nobody:b": nil} {
		t.Run("image "+image, func(t *testing.T) {
			t.Parallel()
			i := &images{}
			c := serveImages(t, i)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var got []int64
			err := c.Watch(ctx, image, func(e progress.Event, missed uint64) error {
				if e == (progress.Event{}) { // in effect now
					for n, name := range []string{"host/a:b", "host/c:d", "host/a:b", "host/a:b"} {
						i.Publish(progress.Event{Image: name, Stage: progress.Fetch, State: progress.Update, Bytes: int64(n + 1)})
					}
					i.Publish(progress.Event{Image: image, Stage: progress.Pull, State: progress.End})
					return nil
				}
				if e.Stage == progress.Pull {
					cancel()
				} else if got = append(got, e.Bytes); missed > 0 {
					t.Error("missed some")
				}
				return nil
			})
			if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, context.Canceled) {
				t.Error(diff, err)
			}
		})
	}
}

// TestWatchEvents has every field come over.
func TestWatchEvents(t *testing.T) {
	t.Parallel()
	i := &images{}
	c := serveImages(t, i)
	sent := progress.Event{
		Time: time.Unix(7, 8), Image: "host/a:b", Manifest: manifest, Layer: chain, Blob: manifest, Stage: progress.Fetch, State: progress.End,
		Bytes: 1, Total: 2, Unpacked: 3, Added: 4, Took: 5, Cached: true,
	}
	for _, err := range []error{nil, progress.ErrAborted, errdefs.ErrDataLoss.WithMessage("blob is another"), errors.New("of no class")} {
		sent.Err = err
		enough := errors.New("enough")
		var got progress.Event
		watchErr := c.Watch(t.Context(), "", func(e progress.Event, _ uint64) error {
			if e == (progress.Event{}) {
				i.Publish(sent)
				return nil
			}
			got = e
			return enough
		})
		if !errors.Is(watchErr, enough) {
			t.Fatal(watchErr)
		}
		if got.Err == nil != (err == nil) || err != nil && (got.Err.Error() != err.Error() || errdefs.IsDataLoss(got.Err) != errdefs.IsDataLoss(err) || errors.Is(got.Err, progress.ErrAborted) != errors.Is(err, progress.ErrAborted)) {
			t.Errorf("error %v became %v", err, got.Err)
		}
		got.Err, sent.Err = nil, nil
		if diff := cmp.Diff(sent, got); diff != "" {
			t.Error(diff)
		}
	}
}

// TestSlowWatcherHoldsUpNobody publishes far more than any queue or socket takes
// to a watcher that does not read, and to one that does.
func TestSlowWatcherHoldsUpNobody(t *testing.T) {
	t.Parallel()
	i := &images{}
	c := serveImages(t, i)
	begun, read := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var told, missed uint64
	enough := errors.New("enough")
	wg.Go(func() {
		err := c.Watch(t.Context(), "", func(e progress.Event, before uint64) error {
			if e == (progress.Event{}) {
				close(begun)
				<-read
				return nil
			}
			told++
			missed += before
			if e.State == progress.End {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Error(err)
		}
	})
	<-begun
	const updates = 30_000
	for range updates {
		i.Publish(progress.Event{Image: "host/a:b", Layer: chain, Blob: manifest, Stage: progress.Fetch, State: progress.Update})
	}
	i.Publish(progress.Event{Image: "host/a:b", Stage: progress.Pull, State: progress.End})
	close(read)
	wg.Wait()
	if told+missed != updates+1 || missed == 0 {
		t.Errorf("%d told, %d missed, %d published", told, missed, updates+1)
	}
}

func TestWatchEndsWithTheGuest(t *testing.T) {
	t.Parallel()
	i := &images{}
	c := serveImages(t, i)
	err := c.Watch(t.Context(), "", func(progress.Event, uint64) error { return c.Close() })
	if !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
}
