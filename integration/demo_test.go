// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/sys/mountinfo"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// demoRun is the demo program on its way.
type demoRun struct {
	cmd    *exec.Cmd
	out    io.Reader
	shown  bytes.Buffer // what was read of out
	stderr bytes.Buffer
	tmp    string // parent of the demo's private folder
	state  string // folder of its summary and logs
}

// startDemo starts the demo with a small image from a registry of the test, and
// the programs in a folder.
func startDemo(t *testing.T, programs string) *demoRun {
	t.Helper()
	needs(t, "root", root())
	tools, err := testbed.FindTools()
	needs(t, "containerd", err)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	img, err := testbed.NewImage(testbed.ImageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ref := strings.TrimPrefix(server.URL, "http://") + "/system:1"
	if err := testbed.Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	d := &demoRun{state: t.TempDir()}
	if d.tmp, err = os.MkdirTemp("", "demo-"); err != nil { // t.TempDir is too long for sockets
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d.tmp); err != nil {
			t.Error(err)
		}
	})
	d.cmd = exec.Command(filepath.Join(buildPrograms(t), "demo"), "-image", ref, "-programs", programs,
		"-state", d.state, "-tmp", d.tmp, "-cache", filepath.Join(d.state, "cache"))
	d.cmd.Env = append(os.Environ(), "COFFER_TOOLS="+tools)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	pipe, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = &d.stderr
	d.out = io.TeeReader(pipe, &d.shown)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// await reads the demo's output up to a line with text.
func (d *demoRun) await(text string) error {
	lines := bufio.NewScanner(d.out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the demo never printed %q", text), lines.Err())
}

// end reads the rest and returns how the demo ended.
func (d *demoRun) end() (code int, err error) {
	if _, err := io.Copy(io.Discard, d.out); err != nil {
		return 0, err
	}
	var exit *exec.ExitError
	if err := d.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return d.cmd.ProcessState.ExitCode(), nil
}

// leftNothing wants no process, mount or cgroup of the demo, and an empty
// folder for temporary files.
func (d *demoRun) leftNothing(t *testing.T) {
	t.Helper()
	if left := testbed.ProcessesNaming(d.tmp); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.tmp)); err != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %v, %v", mounts, err)
	}
	entries, err := os.ReadDir(d.tmp)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the folder for temporary files: %v, %v", entries, err)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t, buildPrograms(t))
	code, err := d.end()
	if err != nil || code != 0 || !strings.HasSuffix(d.shown.String(), "\ndemo: ok\n") {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, d.shown.String(), d.stderr.String())
	}
	d.leftNothing(t)
	b, err := os.ReadFile(filepath.Join(d.state, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Image             string
		Layers            int
		EncryptedLayers   int
		Attestations      int
		PullSeconds       float64
		HostLayerBlobs    int
		DeniedRun         bool
		PeakGuestRSSBytes int64
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s.Image == "" || s.Layers != 4 || s.EncryptedLayers != 4 || s.Attestations != 1 || s.PullSeconds <= 0 ||
		s.HostLayerBlobs != 0 || !s.DeniedRun || s.PeakGuestRSSBytes <= 0 {
		t.Errorf("summary: %s", b)
	}
}

// TestDemoInterrupted sends Ctrl-C's signal, or the one of kill, at each step.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		at     string
		signal syscall.Signal
	}{
		{"[1/8]", syscall.SIGINT},
		{"[2/8]", syscall.SIGINT},
		{"$ coffer encrypt", syscall.SIGTERM},
		{"$ crictl pull", syscall.SIGINT},
		{"$ crictl runp", syscall.SIGINT},
		{"$ ctr run", syscall.SIGTERM},
		{"[7/8]", syscall.SIGINT},
	} {
		t.Run(c.at, func(t *testing.T) {
			t.Parallel()
			d := startDemo(t, buildPrograms(t))
			if err := d.await(c.at); err != nil {
				t.Fatalf("%v\n%s%s", err, d.shown.String(), d.stderr.String())
			}
			if err := d.cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			code, err := d.end()
			if err != nil || code != 130 {
				t.Errorf("exit code %d, %v\n%s%s", code, err, d.shown.String(), d.stderr.String())
			}
			t.Logf("ended after %s", time.Since(start).Round(time.Millisecond))
			d.leftNothing(t)
		})
	}
}

// TestDemoFails: the demo says what went wrong and keeps the logs.
func TestDemoFails(t *testing.T) {
	t.Parallel()
	programs := t.TempDir()
	for _, name := range []string{"coffer", "coffer-kbs", "coffer-snapshotter"} {
		if err := os.Symlink(filepath.Join(buildPrograms(t), name), filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	broken := []byte("#!/bin/sh\necho out of luck >&2\nexit 1\n")
	if err := os.WriteFile(filepath.Join(programs, "coffer-guest"), broken, 0o700); err != nil {
		t.Fatal(err)
	}
	d := startDemo(t, programs)
	code, err := d.end()
	if err != nil || code != 1 {
		t.Errorf("exit code %d, %v, want 1", code, err)
	}
	for _, text := range []string{"coffer-guest ended at once", "out of luck", "the logs are in " + filepath.Join(d.state, "logs")} {
		if !strings.Contains(d.shown.String(), text) {
			t.Errorf("the demo does not say %q:\n%s", text, d.shown.String())
		}
	}
	if log, err := os.ReadFile(filepath.Join(d.state, "logs", "coffer-guest.log")); err != nil || string(log) != "out of luck\n" {
		t.Errorf("the guest's log: %q, %v", log, err)
	}
	if _, err := os.Stat(filepath.Join(d.state, "summary.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a summary of a failed demo: %v", err)
	}
	d.leftNothing(t)
}

// TestDemoKilled kills the demo the hard way while a container runs: nothing
// may go on running, and the next testbed removes what it left on disk.
func TestDemoKilled(t *testing.T) {
	t.Parallel()
	d := startDemo(t, buildPrograms(t))
	if err := d.await("$ ctr run"); err != nil {
		t.Fatalf("%v\n%s%s", err, d.shown.String(), d.stderr.String())
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.end(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(context.Context) error {
		if left := testbed.ProcessesNaming(d.tmp); len(left) > 0 {
			return fmt.Errorf("still running: %q", left)
		}
		return nil
	})
	if err := testbed.Sweep(d.tmp); err != nil { // as the next testbed there does
		t.Error(err)
	}
	d.leftNothing(t)
}
