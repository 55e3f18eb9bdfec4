// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/unpack"
)

// Unlisted directories take after those of the nearest layer that shows them.
func TestInherit(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	s := open(t, t.TempDir())

	st := stage(t, s)
	plant(t, st.Dir, []string{"usr/lib/", "gone/", "hidden/deep/", "file", "opaque/in/"})
	want := map[string]string{}
	for i, name := range []string{"usr", "usr/lib", "gone", "hidden", "hidden/deep", "opaque", "opaque/in"} {
		want[name] = mark(t, filepath.Join(st.Dir, name), 1000+i)
	}
	bottom, err := st.Commit(t.Context(), metaOf("", "bottom"), nil)
	if err != nil {
		t.Fatal(err)
	}

	st = stage(t, s)
	plant(t, st.Dir, []string{"usr/", "gone=whiteout", "hidden=a file", "opaque/=opaque"})
	want["usr"] = mark(t, filepath.Join(st.Dir, "usr"), 2000)
	want["opaque"] = mark(t, filepath.Join(st.Dir, "opaque"), 2001)
	middle, err := st.Commit(t.Context(), metaOf(bottom.ChainID, "middle"), nil)
	if err != nil {
		t.Fatal(err)
	}

	names := []string{"usr", "usr/lib", "usr/lib/new", "gone", "hidden", "hidden/deep", "file", "opaque", "opaque/in"}
	st = stage(t, s)
	for _, name := range names {
		plant(t, st.Dir, []string{name + "/"})
	}
	fresh := modeOf(t, filepath.Join(st.Dir, "gone"))[:len("755 0 0 ")]
	for _, name := range []string{"usr/lib/new", "gone", "hidden", "hidden/deep", "file", "opaque/in"} {
		delete(want, name)
	}
	top, err := st.Commit(t.Context(), metaOf(middle.ChainID, "top"), names)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		got := modeOf(t, filepath.Join(top.Path, name))
		if want[name] != "" && got != want[name] {
			t.Errorf("%s has %q, want %q", name, got, want[name])
		}
		if want[name] == "" && !strings.HasPrefix(got, fresh) {
			t.Errorf("%s has %q, want the default", name, got)
		}
	}
	if opaque, err := isOpaque(filepath.Join(top.Path, "opaque")); err != nil || opaque {
		t.Errorf("the mark of overlayfs was inherited, error %v", err)
	}
}

// Files under a path that is a link in the layers below go where it leads.
func TestRelocate(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	base := []string{
		"usr/lib/libc=c", "usr/sbin=->bin", "usr/bin/",
		"lib=->usr/lib", "abs=->/usr/lib", "up=->../../usr/./lib/", "two=->lib", "dangling=->no/where",
		"root=->/", "loop=->loop", "file=1", "tofile=->file", "self=->self/x",
	}
	for name, tc := range map[string]struct {
		files, implicit, want []string
		invalid               bool
	}{
		"relative":       {files: []string{"lib/x=1"}, implicit: []string{"lib"}, want: []string{"usr/", "usr/lib/", "usr/lib/x=1"}},
		"absolute":       {files: []string{"abs/x=1"}, implicit: []string{"abs"}, want: []string{"usr/", "usr/lib/", "usr/lib/x=1"}},
		"over the top":   {files: []string{"up/x=1"}, implicit: []string{"up"}, want: []string{"usr/", "usr/lib/", "usr/lib/x=1"}},
		"link to a link": {files: []string{"two/x=1"}, implicit: []string{"two"}, want: []string{"usr/", "usr/lib/", "usr/lib/x=1"}},
		"deeper link":    {files: []string{"usr/sbin/x=1"}, implicit: []string{"usr", "usr/sbin"}, want: []string{"usr/", "usr/bin/", "usr/bin/x=1"}},
		"nested": {
			files: []string{"lib/a/b/x=1"}, implicit: []string{"lib", "lib/a", "lib/a/b"},
			want: []string{"usr/", "usr/lib/", "usr/lib/a/", "usr/lib/a/b/", "usr/lib/a/b/x=1"},
		},
		"dangling": {files: []string{"dangling/x=1"}, implicit: []string{"dangling"}, want: []string{"no/", "no/where/", "no/where/x=1"}},
		"merge": {
			files:    []string{"lib/a/x=1", "usr/lib/a/y=2", "lib/z=whiteout"},
			implicit: []string{"lib", "lib/a", "usr", "usr/lib", "usr/lib/a"},
			want:     []string{"usr/", "usr/lib/", "usr/lib/a/", "usr/lib/a/x=1", "usr/lib/a/y=2", "usr/lib/z=whiteout"},
		},
		"file beats whiteout": {
			files: []string{"lib/x=whiteout", "usr/lib/x=1", "lib/y=2", "usr/lib/y=whiteout"}, implicit: []string{"lib", "usr", "usr/lib"},
			want: []string{"usr/", "usr/lib/", "usr/lib/x=1", "usr/lib/y=2"},
		},
		"opaque":          {files: []string{"lib/=opaque"}, implicit: []string{"lib"}, want: []string{"usr/", "usr/lib/=opaque"}},
		"listed stays":    {files: []string{"lib/x=1"}, implicit: nil, want: []string{"lib/", "lib/x=1"}},
		"two files":       {files: []string{"lib/x=1", "usr/lib/x=2"}, implicit: []string{"lib"}, invalid: true},
		"link to root":    {files: []string{"root/x=1"}, implicit: []string{"root"}, invalid: true},
		"link to itself":  {files: []string{"loop/x=1"}, implicit: []string{"loop"}, invalid: true},
		"link into self":  {files: []string{"self/x=1"}, implicit: []string{"self"}, invalid: true},
		"link to file":    {files: []string{"tofile/x=1"}, implicit: []string{"tofile"}, invalid: true},
		"file in the way": {files: []string{"lib/x=1", "usr=file"}, implicit: []string{"lib"}, invalid: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			st := stage(t, s)
			plant(t, st.Dir, base)
			attributes := mark(t, filepath.Join(st.Dir, "usr/lib"), 1000)
			bottom, err := st.Commit(t.Context(), metaOf("", "bottom"), nil)
			if err != nil {
				t.Fatal(err)
			}
			st = stage(t, s)
			plant(t, st.Dir, tc.files)
			before := modeOf(t, st.Dir)
			top, err := st.Commit(t.Context(), metaOf(bottom.ChainID, "top"), tc.implicit)
			if tc.invalid {
				if !errdefs.IsInvalidArgument(err) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, list(t, top.Path)); diff != "" {
				t.Error(diff)
			}
			for _, line := range tc.want {
				if strings.HasPrefix(line, "usr/lib/=") || line == "usr/lib/" {
					if got := modeOf(t, filepath.Join(top.Path, "usr/lib")); got != attributes {
						t.Errorf("usr/lib has %q, want %q", got, attributes)
					}
				}
			}
			if got := modeOf(t, top.Path); got != before {
				t.Errorf("the root has %q, had %q", got, before)
			}
		})
	}
}

// A layer unpacked alone, once committed and mounted over its parent, shows what
// unpacking it onto its parent would.
func TestOverlay(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"))
	st := stage(t, s)
	plant(t, st.Dir, []string{"etc/old=1", "etc/kept=1", "var/log/x=1", "lib=->usr/lib", "usr/lib/libc=c"})
	attributes := mark(t, filepath.Join(st.Dir, "etc"), 1000)
	bottom, err := st.Commit(t.Context(), metaOf("", "bottom"), nil)
	if err != nil {
		t.Fatal(err)
	}

	st = stage(t, s)
	facts, err := unpack.New(unpack.Options{}).Apply(t.Context(), st.Dir, strings.NewReader(tarOf(t,
		"etc/new", "etc/.wh.old", "var/.wh..wh..opq", "var/y", "lib/libd")))
	if err != nil {
		t.Fatal(err)
	}
	top, err := st.Commit(t.Context(), metaOf(bottom.ChainID, "top"), facts.Implicit)
	if err != nil {
		t.Fatal(err)
	}
	if facts.Inodes != 8 || facts.Size == 0 {
		t.Errorf("facts are %+v", facts)
	}

	merged := filepath.Join(dir, "merged")
	plant(t, dir, []string{"merged/"})
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+top.Path+":"+bottom.Path); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	want := []string{
		"etc/", "etc/kept=1", "etc/new=new", "lib=->usr/lib",
		"usr/", "usr/lib/", "usr/lib/libc=c", "usr/lib/libd=libd", "var/", "var/y=y",
	}
	if diff := cmp.Diff(want, list(t, merged)); diff != "" {
		t.Error(diff)
	}
	if got := modeOf(t, filepath.Join(merged, "etc")); got != attributes {
		t.Errorf("etc has %q, want %q", got, attributes)
	}
}
