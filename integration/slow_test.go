// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// heldUp makes the registry hold a layer back until release is called, and
// returns a channel that is closed when somebody waits for it.
func (m *machine) heldUp(t *testing.T, p *published) (waiting <-chan struct{}, release func()) {
	t.Helper()
	asked, gate := make(chan struct{}), make(chan struct{})
	m.Proxy.Set(p.top().Digest.String(), testbed.Fault{Times: 1, Body: func(b []byte) []byte {
		close(asked)
		<-gate
		return b
	}})
	return asked, func() { close(gate) }
}

// TestSlowPullBlocksNobody: containerd keeps a lock of the snapshotter while
// Prepare runs, its garbage collection wants that lock alone, and everybody
// queues behind it. A layer that takes minutes must not stop the node.
func TestSlowPullBlocksNobody(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	quick := m.publish(t, "quick", testbed.ImageOptions{})
	slow := m.publish(t, "slow", testbed.ImageOptions{})
	m.runs(t, quick)
	victim, err := m.pod.Create(t.Context(), "victim", quick.ref, "true")
	if err != nil {
		t.Fatal(err)
	}
	waiting, release := m.heldUp(t, slow)
	pulled := make(chan error, 1)
	go func() { pulled <- m.Pull(t.Context(), slow.ref) }()
	<-waiting
	other := m.publish(t, "other", testbed.ImageOptions{})
	for _, step := range []struct {
		name string
		do   func(ctx context.Context) error
	}{
		{"remove a container", func(ctx context.Context) error { _, err := m.Crictl(ctx, "rm", victim); return err }},
		{"collect garbage", func(ctx context.Context) error {
			_, err := m.Ctr(ctx, "k8s.io", "content", "prune", "references")
			return err
		}},
		{"create a container", func(ctx context.Context) error { _, err := m.pod.Create(ctx, "again", quick.ref, "true"); return err }},
		{"pull an image", func(ctx context.Context) error { return m.Pull(ctx, other.ref) }},
		{"run a container", func(ctx context.Context) error { _, err := m.pod.Run(ctx, "other", other.ref, "true"); return err }},
		{"list snapshots", func(ctx context.Context) error {
			_, err := m.Ctr(ctx, "k8s.io", "snapshot", "--snapshotter", "coffer", "ls")
			return err
		}},
		{"remove an image", func(ctx context.Context) error {
			_, err := m.Ctr(ctx, "default", "image", "rm", "--sync", "none")
			return err
		}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		start := time.Now()
		err := step.do(ctx)
		cancel()
		t.Logf("%s: %.2f s, %v", step.name, time.Since(start).Seconds(), err)
		if ctx.Err() != nil && err != nil {
			t.Errorf("%s waits for the slow pull: %v", step.name, err)
		}
	}
	select {
	case err := <-pulled:
		t.Errorf("the slow pull ended early: %v", err)
	default:
	}
	release()
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	m.runs(t, slow)
}
