// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-cc/coffer/imagepull"
	"github.com/coffer-cc/coffer/imagepull/store"
)

const (
	crashWorld  = "COFFER_TEST_CRASH_WORLD"
	crashPlaces = 3 // at which processes are killed at the same time
)

// TestCrashChild is no test of its own: it is what TestCrash runs and kills. It
// pulls, mounts, unmounts and removes images, and collects garbage, all at once.
func TestCrashChild(t *testing.T) {
	t.Parallel()
	if os.Getenv(crashWorld) == "" {
		t.Skip("runs as a child of TestCrash")
	}
	var w world
	if err := json.Unmarshal([]byte(os.Getenv(crashWorld)), &w); err != nil {
		t.Fatal(err)
	}
	// Less than all images need, so that images are evicted.
	s, err := store.Open(w.path("store"), store.Options{MaxBytes: 150 << 10, MaxAge: 20 * time.Millisecond, Unclaimed: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	g, ctx := errgroup.WithContext(t.Context())
	for i := range 3 {
		g.Go(func() error { return w.mountAndUnmount(ctx, p, w.path("bundles", fmt.Sprint(i))) })
	}
	g.Go(func() error { return w.claimAndRemove(ctx, p, 0) })
	g.Go(func() error { return w.removeImages(ctx, s) })
	g.Go(func() error {
		for ctx.Err() == nil {
			if _, err := s.GC(ctx); err != nil {
				return err
			}
			if err := s.Sync(); err != nil {
				return err
			}
			<-time.After(time.Millisecond)
		}
		return nil
	})
	t.Fatal(g.Wait())
}

// full is what a limited store may say.
func full(err error) bool { return errdefs.IsResourceExhausted(err) }

func (w world) mountAndUnmount(ctx context.Context, p *imagepull.Puller, bundle string) error {
	for {
		_, err := p.PullImage(ctx, w.Images[rand.IntN(len(w.Images))], bundle)
		if err != nil && !full(err) && !errdefs.IsAlreadyExists(err) { // the latter: of the process before
			return fmt.Errorf("PullImage: %w", err)
		}
		if err == nil {
			if err := os.WriteFile(filepath.Join(bundle, "rootfs", "written"), []byte("by the container"), 0o600); err != nil {
				return err
			}
			<-time.After(time.Duration(rand.IntN(10)) * time.Millisecond)
		}
		if err := p.RemoveImage(ctx, bundle); err != nil {
			return fmt.Errorf("RemoveImage: %w", err)
		}
	}
}

// claimAndRemove does what a snapshotter asks for, with the images from an index
// on.
func (w world) claimAndRemove(ctx context.Context, p *imagepull.Puller, from int) error {
	for {
		i := from + rand.IntN(len(w.Images)-from)
		// NotFound is a claim that was too late.
		if _, _, _, err := p.PullLayer(ctx, w.Images[i], "", w.Tops[i]); err != nil && !full(err) && !errdefs.IsNotFound(err) {
			return fmt.Errorf("PullLayer: %w", err)
		}
		if rand.IntN(2) == 0 {
			continue
		}
		if err := p.RemoveLayer(ctx, w.Tops[i]); err != nil && !errdefs.IsFailedPrecondition(err) {
			return fmt.Errorf("RemoveLayer: %w", err)
		}
	}
}

func (w world) removeImages(ctx context.Context, s *store.Store) error {
	for {
		for _, i := range s.Images() {
			if _, err := s.RemoveImage(ctx, i.Manifest); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
				return fmt.Errorf("RemoveImage of the store: %w", err)
			}
		}
		<-time.After(5 * time.Millisecond)
	}
}

// TestCrash kills a process that pulls, a few hundred times, each at a random
// moment. What is found then is always whole, and nothing is left over that the
// next process does not take away.
func TestCrash(t *testing.T) {
	t.Parallel()
	w, trees := newWorld(t)
	var seen, parked, adopted atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d layers, %d parked and %d mounted bundles seen", seen.Load(), parked.Load(), adopted.Load())
		if !t.Failed() && (seen.Load() == 0 || parked.Load() == 0 || adopted.Load() == 0) {
			t.Error("no process came far enough")
		}
	})
	for place := range crashPlaces {
		t.Run(fmt.Sprint(place), func(t *testing.T) {
			t.Parallel()
			w := w
			w.Root = tmpfs(t, "size=32m")
			t.Cleanup(func() { w.unmountInside(t) })
			for round := range crashRounds {
				w.runAndKill(t, "TestCrashChild", time.Duration(rand.Int64N(int64(crashSpan))))
				s, err := store.Open(w.path("store"), store.Options{})
				if err != nil {
					t.Fatal(err)
				}
				w.checkStore(t, s, trees)
				p, err := w.puller(s)
				if err != nil {
					t.Error(err)
				}
				w.checkBundles(t, s)
				seen.Add(int64(len(names(t, w.path("store", "layers")))))
				parked.Add(int64(len(w.parked(t))))
				adopted.Add(int64(w.adopt(t, p, s)))
				if round%2 == 0 { // else the next process begins with what this one left
					w.removeAll(t, p, s)
				}
				p.Close()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
			s, err := store.Open(w.path("store"), store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p, err := w.puller(s)
			if err != nil {
				t.Fatal(err)
			}
			w.removeAll(t, p, s)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// adopt asks again for each mounted bundle, as a restarted client does. The one
// image that it has is confirmed, another is refused.
func (w world) adopt(t *testing.T, p *imagepull.Puller, s *store.Store) int {
	t.Helper()
	holders := s.Holders()
	for _, bundle := range holders {
		confirmed := 0
		for _, image := range w.Images {
			switch _, err := p.PullImage(t.Context(), image, bundle); {
			case err == nil:
				confirmed++
			case !errdefs.IsAlreadyExists(err):
				t.Errorf("adopt %s: %v", bundle, err)
			}
		}
		if confirmed != 1 {
			t.Errorf("%d images are confirmed for one bundle", confirmed)
		}
	}
	return len(holders)
}

func (w world) removeAll(t *testing.T, p *imagepull.Puller, s *store.Store) {
	t.Helper()
	for _, bundle := range s.Holders() {
		if err := p.RemoveImage(t.Context(), bundle); err != nil {
			t.Error(err)
		}
	}
	w.checkBundles(t, s)
	p.Close() // also waits for pulls that are about to end
	for _, i := range s.Images() {
		if _, err := s.RemoveImage(t.Context(), i.Manifest); err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
	}
	for _, chainID := range w.chainIDs(t) {
		if err := p.RemoveLayer(t.Context(), chainID); err != nil {
			t.Error(err)
		}
	}
	for _, content := range w.parked(t) {
		if st, _, found := s.Take(content); !found {
			t.Errorf("%v is parked, and cannot be taken", content)
		} else if err := st.Discard(); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{"layers", "parked", "staging", "holds", "images"} {
		if left := names(t, w.path("store", dir)); len(left) > 0 {
			t.Errorf("%s has %v", dir, left)
		}
	}
}

// runAndKill runs a test as a process of its own, and kills it so long after it
// has said that it is ready.
func (w world) runAndKill(t *testing.T, child string, after time.Duration) {
	t.Helper()
	env, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+child+"$", "-test.v")
	cmd.Env = append(os.Environ(), crashWorld+"="+string(env))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		if strings.Contains(lines.Text(), "crash_test.go") {
			t.Error(lines.Text())
		}
	}
	time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	for lines.Scan() {
		t.Log(lines.Text()) // a child that fails says why
	}
	if _ = cmd.Wait(); cmd.ProcessState.Exited() {
		t.Errorf("the process ended by itself: %s", cmd.ProcessState)
	}
}
