// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := parse([]string{"overlay", "/target", "-n", "-o", `a=b\,c,ro`, "-o", "lowerdir=/l:/m"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`a=b\,c`, "ro", "lowerdir=/l:/m"}, got.options); diff != "" || got.target != "/target" {
		t.Errorf("%s %s", got.target, diff)
	}
	for text, args := range map[string][]string{
		"not a source and a target": {"overlay", "-o", "ro"},
		"source \"none\"":           {"none", "/target"},
		"-o without options":        {"overlay", "/target", "-o"},
		"unknown argument \"-t\"":   {"overlay", "/target", "-t", "x"},
		"no lowerdir":               {"overlay", "/target", "-o", "upperdir=/u,workdir=/w"},
		"go together":               {"overlay", "/target", "-o", "lowerdir=/l,workdir=/w"},
		"lowerdir is given twice":   {"overlay", "/target", "-o", "lowerdir=/l,lowerdir=/m"},
	} {
		if err := run(args, nil); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v, want %q", args, err, text)
		}
	}
	var out bytes.Buffer
	if err := run([]string{"--help"}, &out); err != nil || out.String() != usage {
		t.Errorf("%v %q", err, out.String())
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := newOverlay(split("rw,nosuid,nodev,dev,workdir=/w,upperdir=/u,lowerdir=/l,index=off,io.katacontainers.volume=e30=,extraoption=x=,userxattr,"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"workdir=/w", "upperdir=/u", "lowerdir=/l", "index=off", "userxattr"}
	if diff := cmp.Diff(want, o.data); diff != "" || o.flags != unix.MS_NOSUID {
		t.Errorf("flags %x %s", o.flags, diff)
	}
}

func TestShorten(t *testing.T) {
	t.Parallel()
	dir, short := shorten([]string{"workdir=/r/s/12/work", "index=off", "lowerdir=/r/s/1/fs:/r/s/10/fs"})
	if diff := cmp.Diff([]string{"workdir=12/work", "index=off", "lowerdir=1/fs:10/fs"}, short); diff != "" || dir != "/r/s" {
		t.Errorf("%s %s", dir, diff)
	}
	dir, short = shorten([]string{"upperdir=/a/b", "lowerdir=/ab/c"})
	if diff := cmp.Diff([]string{"upperdir=a/b", "lowerdir=ab/c"}, short); diff != "" || dir != "/" {
		t.Errorf("%s %s", dir, diff)
	}
	dir, short = shorten([]string{"lowerdir=a:/b"})
	if diff := cmp.Diff([]string{"lowerdir=a:/b"}, short); diff != "" || dir != "." {
		t.Errorf("%s %s", dir, diff)
	}
}

func require(t *testing.T, what, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), what) {
		t.Fatalf("%s, and REQUIRE names %s", reason, what)
	}
	t.Skip(reason)
}

// ground is a folder on a file system of its own, with n layers whose names
// together are too long for mount(2) where n is large.
func ground(t *testing.T, n int) (dir string, options []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		require(t, "root", "mounting needs root")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	lowers := make([]string, n)
	for i := range lowers {
		lowers[i] = filepath.Join(dir, "snapshots", fmt.Sprint(i), "fs")
		if err := os.MkdirAll(lowers[i], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(lowers[i], fmt.Sprint("of-", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"target", "snapshots/up/fs", "snapshots/up/work"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	up := filepath.Join(dir, "snapshots", "up")
	return dir, []string{
		"workdir=" + up + "/work", "upperdir=" + up + "/fs", "lowerdir=" + strings.Join(lowers, ":"),
		"io.katacontainers.volume=" + strings.Repeat("A", 8<<10) + "==",
	}
}

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
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// TestMounts runs the program itself, and as containerd does.
func TestMounts(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, name), "github.com/coffer-cc/coffer/cmd/nydus-overlayfs-coffer")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, layers := range map[string]int{"few layers": 2, "as many as an image has": 127} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, options := ground(t, layers)
			target := filepath.Join(dir, "target")
			cmd := exec.Command(filepath.Join(bin, "nydus-overlayfs-coffer"), "overlay", target, "-o", strings.Join(options, ","))
			mounted(t, cmd, dir, layers)
		})
		t.Run("mount.fuse with "+name, func(t *testing.T) {
			t.Parallel()
			helper, err := exec.LookPath("mount.fuse")
			if err != nil {
				require(t, "fuse", "mount.fuse is not here: install fuse3")
			}
			dir, options := ground(t, layers)
			args := []string{"overlay", filepath.Join(dir, "target")}
			for _, o := range options {
				args = append(args, "-o", o)
			}
			cmd := exec.Command(helper, append(args, "-t", "nydus-overlayfs-coffer")...)
			cmd.Env = []string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}
			mounted(t, cmd, dir, layers)
		})
	}
}

func mounted(t *testing.T, cmd *exec.Cmd, dir string, layers int) {
	t.Helper()
	target := filepath.Join(dir, "target")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	defer unmount(t, target)
	entries, err := os.ReadDir(target)
	if err != nil || len(entries) != layers {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "snapshots/up/fs/new")); err != nil {
		t.Error(err)
	}
}

func TestMountFails(t *testing.T) {
	t.Parallel()
	dir, options := ground(t, 1)
	for text, args := range map[string][]string{
		"the target is not there":        {"overlay", dir + "/none", "-o", strings.Join(options, ",")},
		"there must be two lowerdirs":    {"overlay", dir + "/target", "-o", options[2]},
		"squash some layers":             {"overlay", dir + "/target", "-o", "lowerdir=/a" + strings.Repeat(":/0123456789", 500)},
		"as an overlay: no such file or": {"overlay", dir + "/target", "-o", "lowerdir=/none-1:/none-2"},
	} {
		if err := run(args, nil); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
}
