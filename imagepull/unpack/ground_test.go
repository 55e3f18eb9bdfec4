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

// skip ends a test that this machine cannot run, unless it is required to.
func skip(t testing.TB, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("REQUIRE names root, but ", reason)
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
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir)
	}
}

// unmount waits for whoever still holds the file system: a loop device lets go
// of its file some time after its own file system is unmounted, and a process
// that another test starts has this one's open files until it runs its program.
// Nothing tells when.
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
		skip(t, "there is no mkfs.ext4")
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
			skip(t, "there is no loop device for ext4: "+strings.Join(args, " ")+": "+string(out))
		}
	}
	return dir, func() {
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
		end()
	}
}
