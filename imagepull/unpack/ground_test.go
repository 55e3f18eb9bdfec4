// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package unpack_test

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

// skip ends a test for want of a capability, and fails if REQUIRE names it.
func skip(t testing.TB, capability, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), capability) {
		t.Fatalf("REQUIRE names %s, but %s", capability, reason)
	}
	t.Skip(reason)
}

// A ground makes empty file systems of one kind.
type ground struct {
	name  string
	fresh func(t testing.TB) (dir string, done func())
}

func grounds() []ground {
	return []ground{{"tmpfs", freshTmpfs}, {"ext4", freshExt4}}
}

func freshTmpfs(t testing.TB) (dir string, done func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "unpack-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4g"); err != nil {
		t.Fatal(err)
	}
	return dir, func() {
		// A loop device lets go of a file in it some time after its own file
		// system is unmounted, and nothing tells when: the memory is free then.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir)
	}
}

// unmount waits for whoever still holds the file system: a process that another
// test starts has this one's open files until it runs its program. Nothing
// tells when.
func unmount(dir string) error {
	var err error
	for range 200 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		<-time.After(25 * time.Millisecond)
	}
	return err
}

// freshExt4 is in a file in memory, so that the disk plays no part.
func freshExt4(t testing.TB) (dir string, done func()) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		skip(t, "root", "there is no mkfs.ext4")
	}
	memory, end := freshTmpfs(t)
	image, dir := filepath.Join(memory, "image"), filepath.Join(memory, "dir")
	for _, args := range [][]string{
		{"truncate", "-s", "3G", image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mkdir", dir},
		{"mount", "-o", "loop,noinit_itable", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			end()
			skip(t, "root", "there is no loop device for ext4: "+strings.Join(args, " ")+": "+string(out))
		}
	}
	return dir, func() {
		discard(dir)
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
		end()
	}
}

// discard has ext4 forget what it has not written yet, which unmounting would
// write first. It does not matter where that cannot be done.
func discard(dir string) {
	const (
		shutdown   = 0x8004587d // FS_IOC_SHUTDOWN
		noLogFlush = 2
	)
	if f, err := os.Open(dir); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush)
		_ = f.Close()
	}
}
