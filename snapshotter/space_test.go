// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("this needs root, and REQUIRE names it")
	}
	t.Skip("this needs root")
}

// smallDisk mounts a file system of a few MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	noError(t, unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m,nr_inodes=200"))
	t.Cleanup(func() { noError(t, unix.Unmount(root, unix.MNT_DETACH)) })
	return root
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	for name, fill := range map[string]func(t *testing.T, dir string){
		"bytes": func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 4<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("the disk is not full: %v", err)
			}
		},
		"inodes": func(t *testing.T, dir string) {
			t.Helper()
			for i := 0; ; i++ {
				if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); errors.Is(err, unix.ENOSPC) {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, g := smallDisk(t), newGuest(t)
			sn := open(t, root, g)
			list := chains("full", 3)
			pull(t, sn, list[:2])
			ballast := filepath.Join(root, "ballast")
			noError(t, os.Mkdir(ballast, 0o700))
			fill(t, ballast)
			exhaust(t, func(key string) error {
				_, err := sn.Prepare(t.Context(), key, list[1].String())
				return err
			}, root)
			exhaust(t, func(key string) error {
				_, err := sn.Prepare(t.Context(), "layer "+key, list[1].String(), ref(list[2]))
				if errdefs.IsAlreadyExists(err) {
					return errors.Join(sn.Remove(t.Context(), list[2].String()), sn.Cleanup(t.Context()))
				}
				return err
			}, root)
			noError(t, os.RemoveAll(ballast))

			pull(t, sn, list)
			_, err := sn.Prepare(t.Context(), "container", list[2].String())
			noError(t, err)
			noError(t, sn.Commit(t.Context(), "committed", "container"))
			noError(t, sn.Cleanup(t.Context()))
			for _, chain := range list {
				if !g.has(chain) {
					t.Errorf("layer %s was released", chain)
				}
			}
			if left := entries(t, root, "layers"); len(left) != 0 {
				t.Errorf("the journal has %v", left)
			}
		})
	}
}

// exhaust does something until there is no room for more.
func exhaust(t *testing.T, do func(key string) error, root string) {
	t.Helper()
	for i := range 1000 {
		if err := do("key " + strconv.Itoa(i)); err != nil {
			wantError(t, err, errdefs.ErrResourceExhausted, "out of space in "+root)
			return
		}
	}
	t.Error("the full disk had room")
}
