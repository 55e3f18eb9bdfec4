// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coffer-cc/coffer/imagepull/imagetest"
	"github.com/coffer-cc/coffer/imagepull/store"
)

const waitingImage = 3 // of four layers

// TestWaitingChild is no test of its own: it is what TestKillWhileLayersWait runs
// and kills. It pulls an image whose lowest layer never comes.
func TestWaitingChild(t *testing.T) {
	t.Parallel()
	if os.Getenv(crashWorld) == "" {
		t.Skip("runs as a child of TestKillWhileLayersWait")
	}
	var w world
	if err := json.Unmarshal([]byte(os.Getenv(crashWorld)), &w); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(w.path("store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, _, err := p.PullLayer(t.Context(), w.Images[waitingImage], "", w.Tops[waitingImage])
		ended <- err
	}()
	for parked := 0; parked < 3; {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
		files, err := filepath.Glob(w.path("store", "staging", "*", "parked.json"))
		if err != nil {
			t.Fatal(err)
		}
		parked = len(files)
	}
	fmt.Println("ready")
	t.Fatal(<-ended)
}

// TestKillWhileLayersWait kills processes whose upper layers wait for the lowest
// one. The next process has them, and fetches none of them again.
func TestKillWhileLayersWait(t *testing.T) {
	t.Parallel()
	w, trees := newWorld(t)
	w.Root = tmpfs(t, "size=32m")
	layers := w.pushed[waitingImage].Layers
	before := make([]int, len(layers))
	for i, l := range layers {
		before[i] = len(w.registry.Requests(l.Digest.String()))
	}
	w.registry.Fail(layers[0].Digest.String(), imagetest.Fault{Stall: true, After: 10})
	const kills = 3
	for range kills {
		w.runAndKill(t, "TestWaitingChild", 0)
	}
	w.registry.Heal()
	s, err := store.Open(w.path("store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.checkStore(t, s, trees)
	if n := len(w.parked(t)); n != 3 {
		t.Errorf("%d layers are parked", n)
	}
	p, err := w.puller(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := p.PullLayer(t.Context(), w.Images[waitingImage], "", w.Tops[waitingImage]); err != nil {
		t.Fatal(err)
	}
	w.checkStore(t, s, trees)
	if n := len(w.parked(t)); n != 0 {
		t.Errorf("%d layers are parked still", n)
	}
	for i, want := range []int{kills + 1, 1, 1, 1} {
		if n := len(w.registry.Requests(layers[i].Digest.String())) - before[i]; n != want {
			t.Errorf("layer %d: %d requests, want %d", i, n, want)
		}
	}
	w.removeAll(t, p, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
