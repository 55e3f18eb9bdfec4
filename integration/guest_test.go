// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// TestGuestAway: coffer-guest does not run, or dies in the middle of a pull.
func TestGuestAway(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	t.Run("stopped", func(t *testing.T) {
		p := m.publish(t, "stopped", testbed.ImageOptions{})
		if err := m.Guest.Stop(); err != nil {
			t.Fatal(err)
		}
		m.refuses(t, p, "code = Unavailable", "coffer-guest is not running", "start it")
		if err := m.Guest.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.runs(t, p)
	})
	t.Run("killed", func(t *testing.T) {
		p := m.publish(t, "killed", testbed.ImageOptions{})
		killed := make(chan error, 1)
		m.Proxy.Set(p.top().Digest.String(), testbed.Fault{Times: 1, Body: func(b []byte) []byte {
			killed <- m.Guest.Kill()
			return b
		}})
		if err := m.Pull(t.Context(), p.ref); err == nil {
			t.Fatal("the pull has to fail when the guest dies")
		}
		if err := <-killed; err != nil {
			t.Fatal(err)
		}
		if err := m.Guest.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.holdsNothing(t, p)
		m.runs(t, p)
	})
}

// TestGuestDiskFull: the guest's store has no room for the image, as can be
// seen before the pull, or only while a layer unpacks.
func TestGuestDiskFull(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]testbed.ImageOptions{
		"seen before": {Layers: 1, LayerBytes: 8 << 20},
		"in unpack":   {Layers: 1, ZeroBytes: 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := boot(t, testbed.Options{GuestStoreBytes: 12 << 20})
			m.startPod()
			p := m.publish(t, "large", opts)
			m.refuses(t, p, "code = ResourceExhausted", "out of space in "+m.GuestStore(), "enlarge")
			if err := m.ResizeGuestStore(t.Context(), 64<<20); err != nil {
				t.Fatal(err)
			}
			m.runs(t, p)
		})
	}
}

// TestGuestDiskJustEnough: an image that fits is not refused by an estimate.
func TestGuestDiskJustEnough(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{GuestStoreBytes: 24 << 20})
	m.startPod()
	m.runs(t, m.publish(t, "fits", testbed.ImageOptions{Layers: 1, LayerBytes: 8 << 20}))
}

// TestCrashes kills each daemon in turn under a running container. The
// container goes on, and a pulled image runs again without a key, a download
// or another handshake.
func TestCrashes(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	p := m.publish(t, "image", testbed.ImageOptions{})
	m.runs(t, p)
	m.Proxy.Requests()
	id := m.startsServer(t, p)
	for _, c := range []*testbed.Component{m.Guest, m.Snapshotter, m.Containerd} {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			out, err := m.Crictl(t.Context(), "exec", id, "cat", "/secret")
			if want := p.Secret + "\n"; err != nil || out != want {
				t.Errorf("in the running container: %q, %v, want %q", out, err, want)
			}
			out, err = m.pod.Run(t.Context(), "after-"+c.Name, p.ref, "cat", "/secret")
			if want := p.Secret + "\n"; err != nil || out != want {
				t.Errorf("in a new container: %q, %v, want %q", out, err, want)
			}
		})
	}
	for _, r := range m.Proxy.Requests() {
		if strings.HasSuffix(r.Path, p.top().Digest.String()) {
			t.Errorf("the layer was fetched again: %+v", r)
		}
	}
	if n := m.handshakes(t); n != 1 {
		t.Errorf("%d handshakes, want 1", n)
	}
}

// startsServer starts a container that stays and returns its id.
func (m *machine) startsServer(t *testing.T, p *published) string {
	t.Helper()
	id, err := m.pod.Create(t.Context(), "server", p.ref, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Crictl(t.Context(), "start", id); err != nil {
		t.Fatal(err)
	}
	return id
}
