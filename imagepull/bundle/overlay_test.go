// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestOldMount covers kernels that do not know lowerdir+.
func TestOldMount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
			t.Fatal("mounting needs root, and REQUIRE names it")
		}
		t.Skip("mounting needs root")
	}
	work := t.TempDir()
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	// Detached, as a process that another test starts may hold this one's files for a
	// moment.
	t.Cleanup(func() {
		if err := unix.Unmount(work, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mkdir := func(name string) string {
		path := filepath.Join(work, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var lowers []string
	for i := range 150 { // by descriptor, since the names fill more than a page
		lower := mkdir(fmt.Sprintf("%s,:/%d", strings.Repeat("x", 60), i))
		if err := os.WriteFile(filepath.Join(lower, "file"), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		lowers = append(lowers, lower)
	}
	target, upper, wd := mkdir("target"), mkdir("upper"), mkdir("work")
	for _, n := range []int{3, 150} {
		o, err := mountOld("test", target, lowers[:n], upper, wd)
		if err != nil {
			t.Fatal(err)
		}
		o.close()
		if got, _ := os.ReadFile(filepath.Join(target, "file")); string(got) != "0" {
			t.Errorf("%d layers: got %q", n, got)
		}
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mountOverlay("test", target, make([]string, maxStack+1), upper, wd); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too many layers: %v", err)
	}
}
