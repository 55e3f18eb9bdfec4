// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-cc/coffer/imagepull/bundle"
)

const manifest = digest.Digest("sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b")

// layer makes a directory with files.
func layer(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readSpec(t *testing.T, dir string) specs.Spec {
	t.Helper()
	var spec specs.Spec
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func checkGone(t *testing.T, work, dir string) {
	t.Helper()
	for _, path := range []string{filepath.Join(dir, "rootfs"), filepath.Join(dir, "config.json")} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(work, "scratch")); len(left) > 0 {
		t.Errorf("writable layer is left: %v", left)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(work))
	if err != nil || len(mounts) != 1 {
		t.Errorf("mounts: %v %v", mounts, err)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	low := layer(t, filepath.Join(work, "low"), map[string]string{"a": "low", "b": "low", "etc/passwd": "root:x:0:0::/:\napp:x:7:8::/:\n"})
	top := layer(t, filepath.Join(work, "top"), map[string]string{"a": "top", "etc/group": "root:x:0:\nmore:x:9:x,app\nstaff:x:50:\n"})
	if err := errors.Join(os.Chmod(top, 0o711), os.Chown(top, 7, 8)); err != nil {
		t.Fatal(err)
	}
	b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
	image := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config: ocispec.ImageConfig{
			User: "app", Entrypoint: []string{"/bin/app"}, Cmd: []string{"-v"}, Env: []string{"A=b"}, WorkingDir: "/data",
			Labels: map[string]string{"org.opencontainers.image.os": "label wins"},
		},
	}
	if err := b.Create(dir, manifest, []string{low, top}, image, bundle.Accounts{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "top", "b": "low"} {
		if got, _ := os.ReadFile(filepath.Join(dir, "rootfs", name)); string(got) != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "rootfs"), &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != 0o711 {
		t.Errorf("rootfs: %+v %v", st, err)
	}
	spec := readSpec(t, dir)
	want := specs.Process{
		User: specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{8, 9}}, Args: []string{"/bin/app", "-v"}, Cwd: "/data",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b"},
	}
	spec.Process.Capabilities, spec.Process.Rlimits = nil, nil
	if diff := cmp.Diff(want, *spec.Process); diff != "" {
		t.Error(diff)
	}
	if spec.Annotations["org.opencontainers.image.os"] != "label wins" || spec.Root.Path != "rootfs" {
		t.Errorf("got %+v", spec)
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs", "b"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(low, "b")); string(got) != "low" {
		t.Error("a write reached the layer")
	}
	if err := b.Create(dir, manifest, []string{low}, image, bundle.Accounts{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second Create: %v", err)
	}
	held, err := os.Open(filepath.Join(dir, "rootfs", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Remove while in use: %v", err)
	}
	_ = held.Close()
	for range 2 {
		if err := b.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	checkGone(t, work, dir)
}

// TestRootfsIsALink has a rootfs that leads elsewhere: nothing is mounted there,
// and the link stays.
func TestRootfsIsALink(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	l := layer(t, filepath.Join(work, "l"), map[string]string{"a": "a"})
	b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
	rootfs := filepath.Join(dir, "rootfs")
	if err := errors.Join(os.Mkdir(filepath.Join(work, "other"), 0o755), os.Mkdir(dir, 0o755), os.Symlink("../other", rootfs)); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"Vacant": b.Vacant(dir), "Create": b.Create(dir, manifest, []string{l}, ocispec.Image{}, bundle.Accounts{})} {
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), "is no directory") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if target, err := os.Readlink(rootfs); err != nil || target != "../other" {
		t.Errorf("the link is %q, %v", target, err)
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(work)); err != nil || len(mounts) != 1 {
		t.Errorf("mounts: %v %v", mounts, err)
	}
}

func TestFailuresLeaveNothing(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, dir string)
		image   ocispec.Image
		class   func(error) bool
		text    string
	}{
		"unknown user": {nil, ocispec.Image{Config: ocispec.ImageConfig{User: "nobody"}}, errdefs.IsInvalidArgument, "set USER to a number"},
		"link out of the rootfs": {func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(outside, filepath.Join(dir, "etc", "passwd")); err != nil {
				t.Fatal(err)
			}
		}, ocispec.Image{Config: ocispec.ImageConfig{User: "evil"}}, errdefs.IsInvalidArgument, "not in the image's /etc/passwd"},
		"a pipe": {func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(filepath.Join(dir, "etc", "passwd"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, ocispec.Image{}, errdefs.IsInvalidArgument, "no regular file"},
		"a device that is not there": {func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mknod(filepath.Join(dir, "etc", "passwd"), unix.S_IFCHR|0o644, int(unix.Mkdev(511, 7))); err != nil {
				t.Fatal(err)
			}
		}, ocispec.Image{}, errdefs.IsInvalidArgument, "no regular file"}, // nothing has tried to open it
		"other system": {nil, ocispec.Image{Platform: ocispec.Platform{OS: "windows"}}, errdefs.IsInvalidArgument, "not for linux"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := workDir(t)
			l := layer(t, filepath.Join(work, "l"), map[string]string{"a": "a"})
			if tc.prepare != nil {
				tc.prepare(t, l)
			}
			b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
			if err := b.Create(dir, manifest, []string{l}, tc.image, bundle.Accounts{}); err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			checkGone(t, work, dir)
			if err := b.Create(dir, manifest, []string{l + "-absent"}, ocispec.Image{}, bundle.Accounts{}); err == nil {
				t.Error("mounted an absent layer")
			}
			checkGone(t, work, dir)
		})
	}
}
