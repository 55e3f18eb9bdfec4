// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-cc/coffer/imagepull/bundle"
)

// configOnly is an image for containerd that has nothing but a config.
type configOnly struct {
	store content.Store
	desc  ocispec.Descriptor
}

func (c configOnly) Config(context.Context) (ocispec.Descriptor, error) { return c.desc, nil }
func (c configOnly) ContentStore() content.Store                        { return c.store }

// containerdProcess is what containerd makes of an image over a rootfs.
func containerdProcess(t *testing.T, rootfs string, image ocispec.Image) (*specs.Process, error) {
	t.Helper()
	body, err := json.Marshal(image)
	if err != nil {
		t.Fatal(err)
	}
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := content.WriteBlob(t.Context(), store, "config", bytes.NewReader(body), desc); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Root: &specs.Root{Path: rootfs}, Linux: &specs.Linux{}}
	err = oci.WithImageConfig(configOnly{store, desc})(t.Context(), nil, &containers.Container{}, spec)
	return spec.Process, err
}

// TestLikeContainerd compares the process of a bundle with containerd's. Left
// out is the second user of an id, to whom containerd gives the groups of the
// first.
func TestLikeContainerd(t *testing.T) {
	t.Parallel()
	const passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:7:8::/:\n\nother:x:7:9::/:\nweb:x:33:33::/:\n"
	const group = "root:x:0:\nadm:x:4:root,web\napp:x:8:app\nmore:x:10:x,app\nstaff:x:50:\nweb:x:33:web\ntwice:x:10:app\n"
	files := map[string]string{"etc/passwd": passwd, "etc/group": group}
	path := []string{"PATH=/bin"}
	for name, tc := range map[string]struct {
		files  map[string]string
		config ocispec.ImageConfig
	}{
		"nothing":           {nil, ocispec.ImageConfig{}},
		"root by default":   {files, ocispec.ImageConfig{}},
		"name":              {files, ocispec.ImageConfig{User: "app"}},
		"number":            {files, ocispec.ImageConfig{User: "7"}},
		"member by name":    {files, ocispec.ImageConfig{User: "web"}},
		"unknown number":    {files, ocispec.ImageConfig{User: "1234"}},
		"no files":          {nil, ocispec.ImageConfig{User: "1234"}},
		"both names":        {files, ocispec.ImageConfig{User: "app:staff"}},
		"both numbers":      {files, ocispec.ImageConfig{User: "33:1234"}},
		"name and number":   {files, ocispec.ImageConfig{User: "web:5"}},
		"number and name":   {files, ocispec.ImageConfig{User: "1234:staff"}},
		"numbers, no files": {nil, ocispec.ImageConfig{User: "5:6"}},
		"unknown name":      {files, ocispec.ImageConfig{User: "nobody"}},
		"unknown group":     {files, ocispec.ImageConfig{User: "app:nogroup"}},
		"name, no files":    {nil, ocispec.ImageConfig{User: "app"}},
		"too large":         {files, ocispec.ImageConfig{User: "2147483648"}},
		"negative":          {files, ocispec.ImageConfig{User: "-1"}},
		"three parts":       {files, ocispec.ImageConfig{User: "app:staff:x"}},
		"program":           {files, ocispec.ImageConfig{Entrypoint: []string{"/a", "b"}, Cmd: []string{"c"}, Env: path, WorkingDir: "/w"}},
		"command only":      {files, ocispec.ImageConfig{Cmd: []string{"c", "d"}, Env: append(path, "A=b", "A=c", "EMPTY=")}},
		"entrypoint only":   {files, ocispec.ImageConfig{Entrypoint: []string{"e"}, WorkingDir: "/"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			work := workDir(t)
			l := layer(t, filepath.Join(work, "l"), tc.files)
			layer(t, l, map[string]string{"x": "x"})
			image := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: tc.config}
			want, wantErr := containerdProcess(t, l, image)
			b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
			err := b.Create(dir, manifest, []string{l}, image, bundle.Accounts{})
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("coffer: %v, containerd: %v", err, wantErr)
			}
			if err != nil {
				return
			}
			spec := readSpec(t, dir)
			if err := b.Remove(dir); err != nil {
				t.Fatal(err)
			}
			got := spec.Process
			for _, p := range []*specs.Process{want, got} {
				p.Capabilities, p.Rlimits = nil, nil
				slices.Sort(p.User.AdditionalGids) // their order has no meaning
				p.User.AdditionalGids = slices.Compact(p.User.AdditionalGids)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error("-containerd +coffer", diff)
			}
		})
	}
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	work := workDir(t)
	l := layer(t, filepath.Join(work, "l"), map[string]string{"data/full/file": "x", "etc/passwd": ""})
	for _, c := range []func() error{
		func() error { return mkdir(l, "data/empty", 0o1770, 5, 6) },
		func() error { return mkdir(l, "outside", 0o700, 0, 0) },
		func() error { return symlink(l, "link", "../../../../data/empty") },
	} {
		if err := c(); err != nil {
			t.Fatal(err)
		}
	}
	b, dir := bundle.New(filepath.Join(work, "scratch")), filepath.Join(work, "bundle")
	image := ocispec.Image{Platform: ocispec.Platform{OS: "linux", OSVersion: "6", OSFeatures: []string{"a", "b"}}, Config: ocispec.ImageConfig{
		StopSignal: "SIGUSR1",
		Volumes: map[string]struct{}{
			"/data/full": {}, "/data/empty/": {}, "/data/empty": {}, "none": {}, "/link": {}, "/etc/passwd": {}, "../up": {},
			"/": {}, "/proc": {}, "/dev/shm/x": {}, "/sys/../proc/x": {}, "": {},
		},
	}}
	if err := b.Create(dir, manifest, []string{l}, image, bundle.Accounts{}); err != nil {
		t.Fatal(err)
	}
	spec := readSpec(t, dir)
	if err := b.Remove(dir); err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	var order []string
	for _, m := range spec.Mounts {
		if m.Type == "tmpfs" && m.Source == "tmpfs" && m.Destination != "/dev" {
			order = append(order, m.Destination)
			got[m.Destination] = m.Options[5:]
			if diff := cmp.Diff([]string{"nosuid", "noexec", "nodev", "relatime", "rw"}, m.Options[:5]); diff != "" {
				t.Error(diff)
			}
		}
	}
	want := map[string][]string{
		"/data/full": {"mode=0755", "uid=0", "gid=0", "tmpcopyup"}, "/data/empty": {"mode=1770", "uid=5", "gid=6"},
		"/link": {"mode=1770", "uid=5", "gid=6"}, "/none": {"mode=0755"}, "/etc/passwd": {"mode=0755"}, "/up": {"mode=0755"},
	}
	if diff := cmp.Diff(want, got); diff != "" || !slices.IsSorted(order) || len(order) != len(want) {
		t.Error(order, diff)
	}
	annotations := map[string]string{"os": "linux", "os.version": "6", "os.features": "a,b", "stopSignal": "SIGUSR1"}
	for key, value := range annotations {
		if spec.Annotations["org.opencontainers.image."+key] != value {
			t.Errorf("annotations: %v", spec.Annotations)
		}
	}
	if spec.Hostname == "" {
		t.Error("no hostname")
	}
}
