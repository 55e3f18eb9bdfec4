// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// runs pulls the image with crictl, runs it in the machine's pod and wants
// its secret.
func (m *machine) runs(t *testing.T, p *published) {
	t.Helper()
	if err := m.Pull(t.Context(), p.ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.pod.Run(t.Context(), p.name, p.ref, "cat", "/secret")
	if err != nil {
		t.Fatal(err)
	}
	if want := p.Secret + "\n"; out != want {
		t.Errorf("%s printed %q, want %q", p.ref, out, want)
	}
}

// refuses pulls the image with crictl, wants an error that has all of the
// texts, and nothing left of the image's top layer.
func (m *machine) refuses(t *testing.T, p *published, texts ...string) {
	t.Helper()
	m.notPulled(t, p, texts...)
	if _, err := m.pod.Create(t.Context(), "refused", p.ref, "cat", "/secret"); err == nil {
		t.Error("a container was created from the refused image")
	}
	m.holdsNothing(t, p)
	for _, point := range m.mounted(t) {
		if !strings.HasPrefix(point, m.ContainerdState()) && point != m.GuestStore() {
			t.Errorf("mounted, and not for a container: %s", point)
		}
	}
}

// notPulled pulls the image with crictl and wants an error that has all of the
// texts.
func (m *machine) notPulled(t *testing.T, p *published, texts ...string) {
	t.Helper()
	err := m.Pull(t.Context(), p.ref)
	var refused *testbed.CommandError
	if !errors.As(err, &refused) {
		t.Fatalf("crictl pull %s: %v, want a refusal", p.ref, err)
	}
	t.Logf("crictl says: %s", refused.Output)
	for _, text := range texts {
		if !strings.Contains(refused.Output, text) {
			t.Errorf("the error does not say %q", text)
		}
	}
}

// holdsNothing wants no trace of the image's top layer, and nothing half done.
// Cancelled layers and containerd's garbage collection may take a moment.
func (m *machine) holdsNothing(t *testing.T, p *published) {
	t.Helper()
	top := p.chains[len(p.chains)-1]
	eventually(t, func(ctx context.Context) error {
		layers, staging, err := m.ListGuestStore(ctx)
		if err != nil {
			return err
		}
		if len(staging) > 0 {
			return fmt.Errorf("the guest's staging folder has %q", staging)
		}
		if slices.Contains(layers, top.String()) {
			return fmt.Errorf("the guest has committed the layer %s", top)
		}
		names, err := m.Snapshots(ctx, "k8s.io", "coffer")
		if err != nil {
			return err
		}
		for _, name := range names {
			if name == top.String() || strings.HasPrefix(name, "extract-") {
				return fmt.Errorf("containerd has the snapshot %s", name)
			}
		}
		return nil
	})
	m.hostHasNoLayer(t, p)
}

// hostHasNoLayer wants no layer of the image in containerd's content store.
func (m *machine) hostHasNoLayer(t *testing.T, images ...*published) {
	t.Helper()
	for _, namespace := range []string{"k8s.io", "default", "client"} {
		blobs, err := m.Blobs(t.Context(), namespace)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range images {
			for _, l := range p.manifest.Layers {
				if slices.Contains(blobs, l.Digest.String()) {
					t.Errorf("containerd's content store has the layer %s of %s in namespace %s", l.Digest, p.ref, namespace)
				}
			}
		}
	}
}

func (m *machine) mounted(t *testing.T) []string {
	t.Helper()
	mounts, err := m.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(mounts)
	return mounts
}

func (m *machine) handshakes(t *testing.T) int {
	t.Helper()
	n, err := m.Handshakes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually wants a nil answer within ten seconds, where there is no event
// to wait for.
func eventually(t *testing.T, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Error(last)
			return
		case <-tick.C:
		}
	}
}
