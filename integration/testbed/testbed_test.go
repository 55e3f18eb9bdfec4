// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// startPlain starts a testbed without coffer, or skips.
func startPlain(t *testing.T) *testbed.Testbed {
	t.Helper()
	tools, err := testbed.FindTools()
	if err != nil {
		skip(t, "containerd", err)
	}
	if os.Geteuid() != 0 {
		skip(t, "root", errors.New("not root"))
	}
	tb, err := testbed.New(t.Context(), testbed.Options{Tools: tools, Plain: true, Faults: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tb.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := tb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tb
}

// skip skips for want of a capability, and fails if REQUIRE names it.
func skip(t *testing.T, capability string, why error) {
	t.Helper()
	if strings.Contains(os.Getenv("REQUIRE"), capability) {
		t.Fatalf("REQUIRE names %s: %v", capability, why)
	}
	t.Skipf("needs %s: %v", capability, why)
}

func pushImage(t *testing.T, tb *testbed.Testbed, name string, opts testbed.ImageOptions) (string, *testbed.Image) {
	t.Helper()
	img, err := testbed.NewImage(opts)
	if err != nil {
		t.Fatal(err)
	}
	ref := tb.RegistryHost + "/" + name
	if err := testbed.Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	return ref, img
}

func TestPlainImageRunsInCrictlAndCtr(t *testing.T) {
	t.Parallel()
	tb, ctx := startPlain(t), t.Context()
	ref, img := pushImage(t, tb, "plain:1", testbed.ImageOptions{
		Compressions: []testbed.Compression{testbed.Gzip, testbed.Zstd, testbed.None},
	})
	want := img.Secret + "\nupper\n"
	if err := tb.Pull(ctx, ref); err != nil {
		t.Fatal(err)
	}
	pod, err := tb.RunPod(ctx, "pod")
	if err != nil {
		t.Fatal(err)
	}
	out, err := pod.Run(ctx, "c", ref, "sh", "-c", "cat /secret /etc/replaced /etc/removed 2>/dev/null; true")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("crictl (-want +got):\n%s", diff)
	}
	if err := tb.CtrPull(ctx, "default", "overlayfs", ref); err != nil {
		t.Fatal(err)
	}
	out, err = tb.CtrRun(ctx, "default", "overlayfs", ref, "c", "cat", "/secret", "/etc/replaced")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("ctr (-want +got):\n%s", diff)
	}
	if err := pod.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if mounts, err := tb.Mounts(); err != nil || len(mounts) != 0 {
		t.Errorf("after the pod is gone, mounted: %v, %v", mounts, err)
	}
}

func TestCloseLeavesNothingOfARunningPod(t *testing.T) {
	t.Parallel()
	tb, ctx := startPlain(t), t.Context()
	if _, err := tb.RunPod(ctx, "pod"); err != nil {
		t.Fatal(err)
	}
	if processes, err := tb.Processes(); err != nil || len(processes) < 3 {
		t.Fatalf("registry, containerd and shim should run: %q, %v", processes, err)
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(tb.Dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Close(); err != nil {
		t.Fatal(err)
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(tb.Dir)); err != nil || len(mounts) != 0 {
		t.Errorf("mounted: %v, %v", mounts, err)
	}
	if left := testbed.ProcessesNaming(tb.Dir); len(left) != 0 {
		t.Errorf("still running: %q", left)
	}
	for _, path := range append(cgroups, tb.Dir) {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestAComponentThatCrashedStartsAgain(t *testing.T) {
	t.Parallel()
	tb := startPlain(t)
	if err := tb.Registry.Kill(); err != nil {
		t.Fatal(err)
	}
	if tb.Registry.Running() {
		t.Error("killed but running")
	}
	if err := tb.Registry.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tb.Registry.Start(t.Context()); err == nil {
		t.Error("a second start of a running component has to be an error")
	}
	if err := tb.Containerd.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}
