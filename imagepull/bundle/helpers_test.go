// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func require(t *testing.T, what, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), what) {
		t.Fatalf("%s, and REQUIRE names %s", reason, what)
	}
	t.Skip(reason)
}

// workDir is on a file system that overlayfs can write to.
func workDir(t *testing.T) string {
	t.Helper()
	return mounted(t, "tmpfs", "tmpfs", "size=64m")
}

// mounted is a fresh mount, which the test must leave with nothing mounted in it.
func mounted(t *testing.T, source, fstype, data string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		require(t, "root", "mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount(source, dir, fstype, 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// unmount waits for those who look at the mounts of the machine to leave.
func unmount(t *testing.T, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	for range 100 {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		<-time.After(10 * time.Millisecond)
		err = unix.Unmount(dir, 0)
	}
	if err != nil {
		t.Errorf("something is still mounted in %s: %v", dir, err)
	}
}

// diskDir is on ext4, on a loop device.
func diskDir(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(workDir(t), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 48<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		require(t, "ext4", "no ext4 can be made: "+err.Error()+string(out))
	}
	loop, err := exec.Command("losetup", "-f", "--show", disk).CombinedOutput()
	if err != nil {
		require(t, "ext4", "no loop device: "+err.Error()+string(loop))
	}
	device := strings.TrimSpace(string(loop))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return mounted(t, device, "ext4", "")
}

const readOnly = unix.MS_REMOUNT | unix.MS_RDONLY

// bind mounts a directory at another for the time of the test.
func bind(t *testing.T, at, from string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, at) })
	if flags == 0 {
		return
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|flags, ""); err != nil {
		t.Fatal(err)
	}
}

func mkdir(root, name string, mode uint32, uid, gid int) error {
	path := filepath.Join(root, name)
	return errors.Join(os.MkdirAll(path, 0o755), os.Chown(path, uid, gid), unix.Chmod(path, mode))
}

func symlink(root, name, target string) error { return os.Symlink(target, filepath.Join(root, name)) }
