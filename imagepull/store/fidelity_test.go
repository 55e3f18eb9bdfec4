// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// TestFidelity unpacks images layer by layer, each alone, and mounts them. The
// result must be what containerd makes of the same layers one after the other in
// one directory.
func TestFidelity(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base := []string{
		"dir usr 0711 10 20", "dir usr/lib 0715 11 21", "dir srv 02775 19 29", "file usr/lib/libc 0644 12 22", "dir usr/bin 0750 13 23",
		"link lib usr/lib", "link sbin usr/sbin", "link usr/sbin bin", "link abs /usr/lib",
		"dir etc 0700 14 24", "file etc/old 0600 0 0", "dir etc/deep 0555 15 25", "file etc/deep/x 0444 0 0",
		"dir tmp 01777 0 0", "dir var 0751 16 26", "dir var/cache 0770 17 27", "file var/cache/a 0644 0 0", "dir var/cache/sub 0705 18 28",
	}
	for name, upper := range map[string][][]string{
		"implicit directories":        {{"file usr/lib/new 04755 1 2", "file etc/deep/er/new 0644 1 2"}, {"file usr/lib/newer 0644 3 4", "file etc/deep/er/newer 0644 3 4"}},
		"sticky and set-group-id":     {{"file tmp/x 0600 5 6", "file srv/x 0600 5 6"}},
		"whiteouts":                   {{"file etc/.wh.old 0 0 0", "file etc/deep/.wh.x 0 0 0"}, {"file etc/old 0640 9 9"}},
		"whiteout of a tree":          {{"file var/.wh.cache 0 0 0"}, {"file var/cache/back 0644 1 1"}},
		"whiteout then implicit":      {{"file .wh.var 0 0 0", "file var/cache/new 0644 1 1"}, {"file var/cache/sub/x 0644 1 1"}},
		"whiteout then listed":        {{"file var/.wh.cache 0 0 0", "dir var/cache 0711 3 3", "file var/cache/sub/x 0644 1 1"}},
		"opaque and implicit below":   {{"file var/cache/.wh..wh..opq 0 0 0", "file var/cache/sub/x 0644 1 1"}},
		"opaque and listed":           {{"dir var/cache 0700 1 1", "file var/cache/.wh..wh..opq 0 0 0", "file var/cache/b 0644 1 1"}, {"file var/cache/sub/x 0644 1 1"}},
		"linked parent":               {{"file lib/new 0644 1 1", "file abs/newer 0644 1 1", "file sbin/tool 0755 1 1"}, {"file lib/.wh.new 0 0 0", "file lib/a/b 0644 1 1"}},
		"linked parent is whited out": {{"file .wh.lib 0 0 0", "file lib/new 0644 1 1"}, {"file lib/a 0644 1 1"}},
		"link behind an opaque":       {{"dir usr 0711 10 20", "file usr/.wh..wh..opq 0 0 0", "file usr/sbin/x 0644 1 1"}},
		"link behind a whiteout":      {{"file .wh.usr 0 0 0", "file usr/sbin/x 0644 1 1"}},
		"directory replaces link":     {{"dir lib 0750 1 1", "file lib/x 0644 1 1"}, {"file lib/y 0644 1 1"}},
		"directory replaces file":     {{"dir etc/old 0711 7 7", "file etc/old/x 0644 1 1"}},
		"file replaces directory":     {{"file var/cache 0600 1 1"}, {"file var/.wh.cache 0 0 0", "file var/cache/x 0644 1 1"}},
		"file then directory":         {{"file var/cache 0600 1 1", "dir var/cache 0711 2 2", "file var/cache/x 0644 1 1"}},
		"link replaces directory":     {{"link var/cache ../etc"}, {"file var/cache/x 0644 1 1"}},
		"hard links":                  {{"file opt/a 0644 1 1", "hard opt/b opt/a"}, {"file opt/a 0600 2 2"}},
		"hard link through a link":    {{"file lib/c 0644 1 1", "hard lib/d lib/c"}},
		"loops and nowhere":           {{"link loop loop", "link gone nowhere/at/all"}, {"file gone/x 0644 1 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			layers := []string{describedTar(t, base)}
			for _, l := range upper {
				layers = append(layers, describedTar(t, l))
			}
			if diff := cmp.Diff(describe(t, oneByOne(t, layers)), describe(t, sideBySide(t, layers))); diff != "" {
				t.Error("-containerd +coffer", diff)
			}
		})
	}
}

// describedTar makes a tar of lines such as "file NAME MODE UID GID",
// "dir NAME MODE UID GID", "link NAME TARGET" and "hard NAME TARGET".
func describedTar(t *testing.T, lines []string) string {
	t.Helper()
	var b strings.Builder
	w := tar.NewWriter(&b)
	for _, line := range lines {
		f := strings.Fields(line)
		h := &tar.Header{Name: f[1], ModTime: time.Unix(1_600_000_000, 0)}
		switch f[0] {
		case "link":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		case "hard":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		default:
			h.Typeflag = tar.TypeReg
			if f[0] == "dir" {
				h.Typeflag = tar.TypeDir
			}
			if _, err := fmt.Sscanf(strings.Join(f[2:], " "), "%o %d %d", &h.Mode, &h.Uid, &h.Gid); err != nil {
				t.Fatal(line, err)
			}
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.of": line}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(line))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// oneByOne applies all layers to one directory.
func oneByOne(t *testing.T, layers []string) string {
	t.Helper()
	dir := t.TempDir()
	for _, l := range layers {
		if _, err := archive.Apply(t.Context(), dir, strings.NewReader(l)); err != nil {
			t.Fatal("containerd: ", err)
		}
	}
	return dir
}

// sideBySide applies each layer alone, the uppermost first, commits them in
// order and mounts them.
func sideBySide(t *testing.T, layers []string) string {
	t.Helper()
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"))
	stagings, facts := make([]*Staging, len(layers)), make([]unpack.Facts, len(layers))
	for i := range slices.Backward(layers) {
		stagings[i] = stage(t, s)
		var err error
		if facts[i], err = unpack.New(unpack.Options{}).Apply(t.Context(), stagings[i].Dir, strings.NewReader(layers[i])); err != nil {
			t.Fatal(err)
		}
	}
	var lower []string
	parent := digest.Digest("")
	for i := range layers {
		layer, err := stagings[i].Commit(t.Context(), metaOf(parent, fmt.Sprint("layer ", i)), facts[i].Implicit)
		if err != nil {
			t.Fatal(err)
		}
		parent, lower = layer.ChainID, append([]string{layer.Path}, lower...)
	}
	merged := filepath.Join(dir, "merged")
	if err := os.Mkdir(merged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// describe lists all that an image's user can see, but for the times of
// directories, which one by one are those of the last change.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{} // names of files with several
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		name := strings.TrimPrefix(path, root+"/")
		line := fmt.Sprintf("%s %s %o %d:%d", name, d.Type(), st.Mode&0o7777, st.Uid, st.Gid)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" %d %q as %s", st.Mtim.Sec, content, first[st.Ino])
		}
		if d.Type()&fs.ModeSymlink == 0 {
			of, err := getXattr(path, "user.of")
			if err == nil {
				line += fmt.Sprintf(" %q", of)
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
