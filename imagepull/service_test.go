// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package imagepull_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/metrics"
	"github.com/coffer-cc/coffer/imagepull/progress"
	"github.com/coffer-cc/coffer/imagepull/service"
)

// TestServed has a puller served on a socket: an image is pulled, watched,
// listed, counted and removed there.
func TestServed(t *testing.T) {
	t.Parallel()
	counted := metrics.New(metrics.Options{})
	e := newEnv(t, newKeyring(), func(o *imagepull.Options) { o.Progress = counted.Observe })
	p := e.registry.Push(t, "a/b:v1", imagetest.Image{Layers: []imagetest.Layer{{Random: 2 << 20}, {}}})
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	service.RegisterLayerPuller(server, e.puller)
	service.RegisterImagePuller(server, e.puller)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context()), listener) }()
	c := service.NewClient(socket)
	defer func() {
		if err := errors.Join(c.Close(), server.Close()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	}()
	bundle, enough := filepath.Join(e.root, "bundle"), errors.New("enough")
	pulled := make(chan error, 1)
	var events []progress.Event
	err = c.Watch(t.Context(), p.Reference, func(ev progress.Event, missed uint64) error {
		if ev == (progress.Event{}) {
			go func() { _, err := c.PullImage(t.Context(), p.Reference, bundle); pulled <- err }()
			return nil
		}
		if events = append(events, ev); missed > 0 {
			t.Errorf("missed %d", missed)
		}
		if line(ev) == "pull end" {
			return enough
		}
		return nil
	})
	if err = errors.Join(err, <-pulled); !errors.Is(err, enough) || errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	checkPairs(t, events)
	images, usage, err := c.ListImages(t.Context())
	if err != nil || len(images) != 1 || images[0].Manifest != p.Manifest.Digest || !images[0].InUse || images[0].Size < 2<<20 || usage.Layers != 2 {
		t.Errorf("got %+v, %+v, %v", images, usage, err)
	}
	if err := c.RemoveImage(t.Context(), bundle); err != nil {
		t.Error(err)
	}
	if _, err := c.GC(t.Context()); err != nil {
		t.Error(err)
	}
	if path, _, _, err := c.PullLayer(t.Context(), p.Reference, p.Manifest.Digest, p.Chain()); err != nil || path == "" {
		t.Errorf("got %q, %v", path, err)
	}
	var b bytes.Buffer
	counted.Write(&b)
	if !containsAll(b.String(), `coffer_imagepull_pulls_total{result="ok"} 1`, `coffer_imagepull_layers_total{result="fetched"} 2`) {
		t.Errorf("got\n%s", b.String())
	}
}
