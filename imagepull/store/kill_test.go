// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"archive/tar"
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// tarOf is a tar of files, each of which has its base name as content.
func tarOf(t testing.TB, names ...string) string {
	t.Helper()
	var buf strings.Builder
	w := tar.NewWriter(&buf)
	for _, name := range names {
		body := path.Base(name)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

const (
	killedRoot = "COFFER_TEST_STORE_ROOT"
	killRounds = 15
)

func killedFiles() []string {
	names := make([]string, 0, 10)
	for i := range 10 {
		names = append(names, fmt.Sprintf("dir%d/file=%d", i, i))
	}
	return names
}

// TestKilledChild is no test of its own: it is what TestKill runs and kills.
func TestKilledChild(t *testing.T) {
	t.Parallel()
	root := os.Getenv(killedRoot)
	if root == "" {
		t.Skip("runs as a child of TestKill")
	}
	s, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		parent := digest.Digest("")
		for depth := range 3 {
			layer := commit(t, s, parent, fmt.Sprintf("layer %d of %d", depth, i%7), killedFiles())
			parent = layer.ChainID
		}
		if err := s.Hold("holder", parent); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Release("holder"); err != nil {
			t.Fatal(err)
		}
		for next := parent; next != "" && i%3 != 0; {
			layer, _ := s.Layer(next)
			if err := s.Remove(next); err != nil {
				t.Fatal(err)
			}
			next = layer.Parent
		}
		parkAndTake(t, s, i)
		if i == 0 {
			fmt.Println("ready")
		}
	}
}

// parkAndTake parks a layer, and ends in one of many ways what was parked before.
func parkAndTake(t *testing.T, s *Store, i int) {
	t.Helper()
	name := fmt.Sprintf("parked %d", i%3)
	st := stage(t, s)
	plant(t, st.Dir, killedFiles())
	if err := st.Park(treeOf(name)); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Leave(); err != nil {
		t.Fatal(err)
	}
	st, _, found := s.Take(treeOf(fmt.Sprintf("parked %d", rand.IntN(3))).Content)
	if !found {
		return
	}
	var err error
	switch i % 4 {
	case 0:
		_, err = st.Leave()
	case 1:
		err = st.Discard()
	default:
		if _, err = st.Commit(t.Context(), metaOf("", name), nil); err == nil {
			err = s.Remove(metaOf("", name).ChainID)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A process killed at any moment leaves whole layers or none, and nothing else.
func TestKill(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	want := list(t, func() string {
		dir := t.TempDir()
		plant(t, dir, killedFiles())
		return dir
	}())
	layers, parked := 0, 0
	for range killRounds {
		runAndKill(t, root, time.Duration(rand.IntN(40_000))*time.Microsecond)
		s, err := Open(root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if n := files(t, s, stagingDir); n > 0 {
			t.Errorf("%d stagings are left", n)
		}
		if n := files(t, s, layersDir); n != len(s.layers) {
			t.Errorf("%d folders for %d layers", n, len(s.layers))
		}
		for _, e := range s.layers {
			layers++
			if got := list(t, s.layer(e).Path); !slices.Equal(got, want) {
				t.Errorf("layer %s has only %d files", e.id, len(got))
			}
		}
		if n := files(t, s, parkedDir); n != len(s.parked) {
			t.Errorf("%d folders for %d parked layers", n, len(s.parked))
		}
		for _, p := range s.parked {
			parked++
			if got := list(t, s.path(parkedDir, p.id, fsDir)); !slices.Equal(got, want) {
				t.Errorf("parked layer %s has only %d files", p.id, len(got))
			}
		}
		for _, holder := range s.Holders() {
			if err := s.Release(holder); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if layers == 0 || parked == 0 {
		t.Errorf("%d layers and %d parked ones seen", layers, parked)
	}
}

func runAndKill(t *testing.T, root string, after time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$", "-test.v")
	cmd.Env = append(os.Environ(), killedRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		if strings.Contains(lines.Text(), "FAIL") {
			t.Error(lines.Text())
		}
	}
	time.AfterFunc(after, func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
	})
	for lines.Scan() {
		t.Log(lines.Text()) // a child that fails says why
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the child ended by itself")
	}
}
