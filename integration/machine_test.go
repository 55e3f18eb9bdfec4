// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// programs holds the folder into which the programs under test are built, once
// for all tests of the package.
type programs struct {
	once sync.Once
	dir  string
	err  error

	mu    sync.Mutex // guards close
	close []func() error
}

var built programs //nolint:gochecknoglobals // one build for all tests; TestMain removes it

func TestMain(m *testing.M) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // tests' own cleanups do not run when a signal ends them
		<-signals
		built.clean()
		os.Exit(130)
	}()
	code := m.Run()
	signal.Stop(signals)
	built.clean()
	os.Exit(code)
}

// clean closes what an interrupted test left and removes the programs.
func (p *programs) clean() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.close {
		_ = c() // closed testbeds answer nil; nobody is there for other answers
	}
	_ = os.RemoveAll(p.dir)
}

// buildPrograms builds coffer's programs and the demo from this checkout.
func buildPrograms(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "coffer-programs-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", built.dir, "../cmd/coffer", "../cmd/coffer-kbs",
			"../cmd/coffer-guest", "../cmd/coffer-snapshotter", "../cmd/nydus-overlayfs-coffer",
			"./containerd-shim-standin-v2", "./demo")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// needs skips the test unless a capability is there; where the environment
// variable REQUIRE, a list with commas, names it, its lack is a failure.
func needs(t *testing.T, capability string, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), capability) {
		t.Fatalf("REQUIRE names %s: %v", capability, missing)
	}
	t.Skipf("needs %s: %v", capability, missing)
}

func root() error {
	if os.Geteuid() != 0 {
		return errors.New("not run as root")
	}
	return nil
}

// machine is a testbed with a pod, for one test.
type machine struct {
	*testbed.Testbed
	t   *testing.T
	pod *testbed.Pod
}

// boot starts a machine for the test.
func boot(t *testing.T, opts testbed.Options) *machine {
	t.Helper()
	needs(t, "root", root())
	var err error
	if opts.Tools == "" {
		opts.Tools, err = testbed.FindTools()
		needs(t, "containerd", err)
	}
	_, err = exec.LookPath("busybox")
	needs(t, "busybox", err)
	opts.Programs, opts.Faults = buildPrograms(t), true
	tb, err := testbed.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Testbed: tb, t: t}
	built.mu.Lock()
	built.close = append(built.close, tb.Close)
	built.mu.Unlock()
	t.Cleanup(m.shutdown)
	if err := tb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// shutdown closes the machine; the logs of a failed test go to the folder
// that $COFFER_TEST_LOGS names.
func (m *machine) shutdown() {
	if to := os.Getenv("COFFER_TEST_LOGS"); to != "" && m.t.Failed() {
		if err := os.CopyFS(filepath.Join(to, strings.ReplaceAll(m.t.Name(), "/", "_")+"-"+rand.Text()[:4]), os.DirFS(m.Logs)); err != nil {
			m.t.Error(err)
		}
	}
	if err := m.Close(); err != nil {
		m.t.Error(err)
	}
}

// startPod starts the pod in which run runs containers.
func (m *machine) startPod() {
	m.t.Helper()
	var err error
	if m.pod, err = m.RunPod(m.t.Context(), "pod"); err != nil {
		m.t.Fatal(err)
	}
}
