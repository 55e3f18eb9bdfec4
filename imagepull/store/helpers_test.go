// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("REQUIRE names root, but the test does not run as root")
	}
	t.Skip("owners, devices, trusted attributes and mounts need root")
}

func open(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// metaOf describes a layer with a made-up diff id.
func metaOf(parent digest.Digest, name string) LayerMeta {
	diffID := digest.FromString(name)
	chainID := diffID
	if parent != "" {
		chainID = digest.FromString(parent.String() + " " + diffID.String())
	}
	return LayerMeta{
		ChainID: chainID, DiffID: diffID, Parent: parent,
		Blob: digest.FromString("blob " + name), Size: int64(len(name)), Inodes: 1,
	}
}

func stage(t testing.TB, s *Store) *Staging {
	t.Helper()
	st, err := s.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// commit adds a layer with these files. A name that ends in "/" makes a
// directory; a value that starts with "->" makes a symbolic link, "whiteout" a
// whiteout; a directory's value "opaque" makes it opaque.
func commit(t testing.TB, s *Store, parent digest.Digest, name string, files []string, implicit ...string) Layer {
	t.Helper()
	st := stage(t, s)
	plant(t, st.Dir, files)
	layer, err := st.Commit(t.Context(), metaOf(parent, name), implicit)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func plant(t testing.TB, dir string, files []string) {
	t.Helper()
	for _, f := range files {
		name, value, _ := strings.Cut(f, "=")
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, isLink := strings.CutPrefix(value, "->"); {
		case strings.HasSuffix(name, "/"):
			if err = os.MkdirAll(path, 0o755); err == nil && value == "opaque" {
				err = unix.Lsetxattr(path, opaqueXattr, []byte("y"), 0)
			}
		case isLink:
			err = os.Symlink(target, path)
		case value == "whiteout":
			err = unix.Mknod(path, unix.S_IFCHR, 0)
		default:
			err = os.WriteFile(path, []byte(value), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list is the reverse of plant: what is in a layer.
func list(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var n node
		if err := unix.Lstat(path, &n.st); err != nil {
			return err
		}
		opaque, err := isOpaque(path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && opaque:
			name += "/=opaque"
		case d.IsDir():
			name += "/"
		case n.whiteout():
			name += "=whiteout"
		case n.is(unix.S_IFLNK):
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += "=->" + target
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name += "=" + string(b)
		}
		lines = append(lines, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// files counts what is directly in one of the store's directories.
func files(t testing.TB, s *Store, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func modeOf(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	value, err := getXattr(path, "user.note")
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatal(err)
	}
	return strings.Join([]string{
		strconv.FormatUint(uint64(st.Mode&0o7777), 8),
		strconv.FormatUint(uint64(st.Uid), 10), strconv.FormatUint(uint64(st.Gid), 10),
		strconv.FormatInt(st.Mtim.Sec, 10), string(value),
	}, " ")
}

// mark gives a directory attributes that no test would find by accident.
func mark(t testing.TB, path string, uid int) string {
	t.Helper()
	if err := unix.Lsetxattr(path, "user.note", []byte("of "+strconv.Itoa(uid)), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(path, uid, uid+1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(path, 0o2710); err != nil {
		t.Fatal(err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1}, {Sec: int64(uid)}}, 0); err != nil {
		t.Fatal(err)
	}
	return modeOf(t, path)
}
