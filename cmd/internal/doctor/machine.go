// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

const (
	overlayMagic = 0x794c7630
	nfsMagic     = 0x6969
	minFree      = 2 << 30
	minInodes    = 100_000
)

func checkKernel(_ context.Context, n *node) []Finding {
	b, err := os.ReadFile(filepath.Join(n.opts.Proc, "filesystems"))
	if err != nil {
		return []Finding{{Level: Warning, Text: err.Error()}}
	}
	if !bytes.Contains(b, []byte("\toverlay\n")) {
		return []Finding{{Level: Problem, Text: "the kernel has no overlay file system loaded", Fix: "modprobe overlay; echo overlay > /etc/modules-load.d/coffer.conf"}}
	}
	return []Finding{{Level: OK, Text: "the kernel has the overlay file system"}}
}

// checkDisk looks at the file systems of the snapshots and of the guest's layers.
func checkDisk(_ context.Context, n *node) (found []Finding) {
	places := []struct{ what, key, path string }{{"snapshots", "root in " + n.snapshotterConfig(), n.snapshotter.Root}}
	if !n.snapshotter.guestRoute() {
		places = append(places, struct{ what, key, path string }{"layers", "work_dir, [image], in " + n.guestConfig(), n.guest.Image.WorkDir})
	}
	for _, p := range places {
		found = append(found, checkPlace(p.what, p.key, p.path)...)
	}
	return found
}

func checkPlace(what, key, path string) []Finding {
	at := existing(path)
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return []Finding{{Level: Problem, Text: fmt.Sprintf("%s of %s: %v", path, what, err)}}
	}
	another := "choose another folder: " + key
	switch st.Type {
	case overlayMagic:
		return []Finding{{Level: Problem, Text: fmt.Sprintf("%s for %s is on an overlay file system, on which overlay cannot be mounted", path, what), Fix: another}}
	case nfsMagic:
		return []Finding{{Level: Problem, Text: fmt.Sprintf("%s for %s is on NFS", path, what), Fix: another}}
	}
	if os.Geteuid() == 0 {
		if ok, err := continuity.SupportsDType(at); err == nil && !ok {
			return []Finding{{Level: Problem, Text: fmt.Sprintf("the file system of %s has no d_type, which overlay needs", path), Fix: another + " (xfs: format with ftype=1)"}}
		}
	}
	free := st.Bavail * uint64(st.Bsize)
	if free < minFree || st.Files > 0 && st.Ffree < minInodes {
		return []Finding{{Level: Warning, Text: fmt.Sprintf("%s for %s has %d MiB and %d inodes left", path, what, free>>20, st.Ffree), Fix: "make room there, or " + another}}
	}
	return []Finding{{Level: OK, Text: fmt.Sprintf("%s for %s has %d GiB left", path, what, free>>30)}}
}

// existing is path or the nearest folder above that is there.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}
