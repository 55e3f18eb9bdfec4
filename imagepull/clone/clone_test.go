// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package clone_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/clone"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("copying layers needs root, and REQUIRE names it")
	}
	t.Skip("copying layers needs root")
}

// must stops at the first error of a setup.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// tree makes one of everything that a layer may have.
func tree(t *testing.T, root string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(root, name) }
	must(t,
		os.MkdirAll(in("usr/share/deep"), 0o755),
		os.Mkdir(in("tmp"), 0o755),
		os.Mkdir(in("implicit"), 0o755),
		os.WriteFile(in("usr/file"), []byte("content"), 0o600),
		os.WriteFile(in("usr/empty"), nil, 0o600),
		os.WriteFile(in("implicit/in it"), []byte("x"), 0o600),
		os.WriteFile(in("usr/large"), []byte(strings.Repeat("large", 200_000)), 0o600),
		os.Link(in("usr/file"), in("usr/share/deep/same")),
		os.Link(in("usr/file"), in("another")),
		os.Symlink("../usr/file", in("tmp/link")),
		os.Symlink("/etc/passwd", in("absolute")),
		os.Symlink("nowhere", in("dangling")),
		unix.Mknod(in("whiteout"), unix.S_IFCHR, 0),
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(in("fifo"), 0o640),
		unix.Lchown(in("absolute"), 5, 6),
		unix.Chown(in("usr/file"), 1000, 1001),
		unix.Chmod(in("usr/file"), 0o4755),
		unix.Chown(in("implicit"), 7, 8),
		unix.Chmod(in("implicit"), 0o2770),
		unix.Chmod(in("tmp"), 0o1777),
		unix.Lsetxattr(in("implicit"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Lsetxattr(in("implicit"), "trusted.other", []byte("of below"), 0),
		unix.Lsetxattr(in("usr/large"), "trusted.test", []byte("value"), 0),
		unix.Lsetxattr(in("usr/large"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
	)
	sparse, err := os.Create(in("usr/sparse"))
	must(t, err, sparse.Truncate(8<<20))
	_, err = sparse.WriteAt([]byte("in the middle"), 4<<20)
	must(t, err, sparse.Close())
	for _, name := range []string{"usr/file", "absolute", "whiteout", "implicit", "usr", "usr/share", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in(name), []unix.Timespec{{Sec: 12, Nsec: 34}, {Sec: 56, Nsec: 789}}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// state is what of a file must be equal in a copy.
func state(t *testing.T, root string) map[string]string {
	t.Helper()
	got, names := make(map[string]string), make(map[uint64]string)
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		rel, _ := filepath.Rel(root, path)
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			content = fmt.Sprintf("%.40q of %d", b, len(b))
			if _, found := names[st.Ino]; !found {
				names[st.Ino] = rel
			}
			content += " first " + names[st.Ino]
		case unix.S_IFLNK:
			content, err = os.Readlink(path)
			must(t, err)
		case unix.S_IFDIR:
			st.Nlink, st.Blocks = 0, 0
		}
		xattrs := make([]byte, 4096)
		n, err := unix.Llistxattr(path, xattrs)
		must(t, err)
		list := strings.Split(string(xattrs[:n]), "\x00")
		slices.Sort(list)
		for _, name := range list {
			if name != "" {
				n, err := unix.Lgetxattr(path, name, xattrs)
				must(t, err)
				content += fmt.Sprintf(" %s=%q", name, xattrs[:n])
			}
		}
		got[rel] = fmt.Sprintf("%o %d:%d rdev %d links %d blocks %d mtime %d.%d %s", st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, st.Blocks, st.Mtim.Sec, st.Mtim.Nsec, content)
		return nil
	}))
	return got
}

// tmpfs is a file system that has all kinds of extended attributes but cannot
// share blocks.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	root := t.TempDir()
	must(t, unix.Mount("tmpfs", root, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(root, 0)) })
	return root
}

func TestTree(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := tmpfs(t, "64m")
	from, to, reset := filepath.Join(root, "from"), filepath.Join(root, "to"), filepath.Join(root, "reset")
	must(t, os.Mkdir(from, 0o700), os.Mkdir(to, 0o711), os.Mkdir(reset, 0o711))
	tree(t, from)
	want := state(t, from)
	must(t, clone.Tree(t.Context(), from, to, clone.Options{}))
	if diff := cmp.Diff(want, state(t, to)); diff != "" {
		t.Error(diff)
	}
	must(t, clone.Tree(t.Context(), from, reset, clone.Options{Reset: map[string]bool{"implicit": true, "not there": true}}))
	got := state(t, reset)
	if s := got["implicit"]; !strings.HasPrefix(s, "40755 0:0 ") || !strings.HasSuffix(s, ` trusted.overlay.opaque="y"`) || strings.Contains(s, "mtime 56.") {
		t.Errorf("a directory that is not of the layer has %s", s)
	}
	delete(got, "implicit")
	delete(want, "implicit")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want["usr/file"], state(t, from)["usr/file"]); diff != "" {
		t.Errorf("the original has changed: %s", diff)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := tmpfs(t, "3m")
	from, to := filepath.Join(root, "from"), filepath.Join(root, "to")
	must(t, os.Mkdir(from, 0o755), os.Mkdir(to, 0o755), os.WriteFile(filepath.Join(from, "f"), make([]byte, 2<<20), 0o600))
	if err := clone.Tree(t.Context(), from, to, clone.Options{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := clone.Tree(ctx, from, to, clone.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := clone.Tree(t.Context(), filepath.Join(root, "none"), to, clone.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no tree: %v", err)
	}
}
