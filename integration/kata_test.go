// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// bootKata starts a machine whose pods are Kata's, with a stand-in for its virtual
// machines.
func bootKata(t *testing.T, k testbed.Kata) *machine {
	t.Helper()
	_, err := exec.LookPath("mount.fuse")
	needs(t, "fuse", err)
	return boot(t, testbed.Options{Kata: &k})
}

// TestGuestRoute runs encrypted images that only the guest sees, in every way in
// which the snapshotter can tell Kata and containerd can tell the snapshotter.
func TestGuestRoute(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]testbed.Kata{
		"volume":             {},
		"static volume":      {StaticVolume: true},
		"plain mounts":       {PlainMounts: true},
		"bare chain ids":     {NoAnnotations: true},
		"without transfer":   {LocalPull: true, NoAnnotations: true},
		"plain, no transfer": {PlainMounts: true, LocalPull: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bootKata(t, k)
			m.startPod()
			p := m.publish(t, "image", testbed.ImageOptions{Compressions: everyCompression(), User: "user"})
			if n := m.handshakes(t); n != 0 {
				t.Errorf("%d handshakes before the image, want 0", n)
			}
			m.runsInGuest(t, p, "first")
			m.runsInGuest(t, p, "second")
			if n := m.handshakes(t); n != 1 {
				t.Errorf("%d handshakes, want 1", n)
			}
			m.hostHasNothing(t, p)
			m.wantStorages(t, p, k)
			m.removeAllOfHost(t, p)
		})
	}
}

// runsInGuest pulls the image, and runs a container under the image's USER, whose
// ids containerd looks up on the host.
func (m *machine) runsInGuest(t *testing.T, p *published, name string) {
	t.Helper()
	if err := m.Pull(t.Context(), p.ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.pod.Run(t.Context(), name, p.ref, "sh", "-c", "id; ls /data; cat /etc/replaced")
	if err != nil {
		t.Fatal(err)
	}
	want := "uid=1000(user) gid=1000(user) groups=50(staff),1000(user)\n0\n1\n2\nupper\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("container's log (-want +got):\n%s", diff)
	}
}

// hostHasNothing wants no blob of the image in the content store, and no file of
// it in the snapshotter's folders but those that the publisher tells.
func (m *machine) hostHasNothing(t *testing.T, p *published) {
	t.Helper()
	m.hostHasNoLayer(t, p)
	// The lowest layers of this image and of the pause image have empty files.
	told := p.top().Annotations["containerd.io/snapshot/coffer.passwd"]
	if want := "root:x:0:0::/:\nuser:x:1000:1000::/:\n"; told != want {
		t.Errorf("the image tells %q, want %q", told, want)
	}
	var found []string
	err := filepath.WalkDir(filepath.Join(m.SnapshotterRoot(), "snapshots"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found = append(found, filepath.Base(path))
		if len(b) > 0 && strings.HasSuffix(path, "/passwd") && string(b) != told {
			t.Errorf("%s has %q", path, b)
		}
		return nil
	})
	slices.Sort(found)
	if diff := cmp.Diff([]string{"group", "group", "group", "passwd", "passwd", "passwd"}, found); diff != "" || err != nil {
		t.Errorf("the host's files: %v %s", err, diff)
	}
}

// wantStorages checks what Kata's agent would have been told.
func (m *machine) wantStorages(t *testing.T, p *published, k testbed.Kata) {
	t.Helper()
	all, err := m.Storages()
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, s := range all {
		sources = append(sources, s.Source)
	}
	if diff := cmp.Diff([]string{"pause", p.ref, p.ref}, sources); diff != "" {
		t.Fatal(diff)
	}
	s := all[1]
	if kind := "fuse.nydus-overlayfs-coffer"; !k.PlainMounts && s.MountType != kind || k.PlainMounts && s.MountType != "overlay" {
		t.Errorf("a mount of type %s", s.MountType)
	}
	var told struct{ Metadata map[string]string }
	text, ok := strings.CutPrefix(s.DriverOptions[0], "image_guest_pull=")
	if err := json.Unmarshal([]byte(text), &told); err != nil || !ok {
		t.Fatalf("driver options %q: %v", s.DriverOptions, err)
	}
	want := map[string]string{}
	if !k.PlainMounts && !k.StaticVolume && !k.NoAnnotations {
		want["containerd.io/snapshot/cri.image-ref"] = p.ref
		want["containerd.io/snapshot/cri.layer-digest"] = p.top().Digest.String()
	}
	got := map[string]string{}
	for key, value := range told.Metadata {
		if key == "containerd.io/snapshot/cri.image-ref" || key == "containerd.io/snapshot/cri.layer-digest" {
			got[key] = value
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hints: %s", diff)
	}
}

// TestGuestRouteFailures: what the guest refuses is what crictl shows, and what
// the host has lost comes back.
func TestGuestRouteFailures(t *testing.T) {
	t.Parallel()
	m := bootKata(t, testbed.Kata{})
	m.startPod()
	p := m.publish(t, "image", testbed.ImageOptions{User: "user"})
	t.Run("no key", func(t *testing.T) {
		m.setKey(t, p, nil)
		if err := m.Pull(t.Context(), p.ref); err != nil {
			t.Fatal(err)
		}
		_, err := m.pod.Run(t.Context(), "nokey", p.ref, "true")
		if err == nil || !strings.Contains(err.Error(), "kbs:///default/key/image") {
			t.Errorf("got %v, want the key that is missing", err)
		}
		m.setKey(t, p, p.kek)
		m.runsInGuest(t, p, "key")
	})
	t.Run("the snapshotter's folder is lost", func(t *testing.T) {
		if err := m.Snapshotter.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(m.SnapshotterRoot()); err != nil {
			t.Fatal(err)
		}
		if err := m.Snapshotter.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.runsInGuest(t, p, "lost")
	})
	t.Run("users that are not the image's", func(t *testing.T) {
		p := m.publish(t, "liar", testbed.ImageOptions{User: "user"})
		manifest := p.manifest
		manifest.Layers = slices.Clone(manifest.Layers)
		top := &manifest.Layers[len(manifest.Layers)-1]
		top.Annotations = maps.Clone(top.Annotations)
		top.Annotations["containerd.io/snapshot/coffer.passwd"] = "user:x:0:0::/:\n"
		pushManifest(t, p.ref, marshal(t, manifest))
		if err := m.Pull(t.Context(), p.ref); err != nil {
			t.Fatal(err)
		}
		_, err := m.pod.Run(t.Context(), "liar", p.ref, "id")
		if err == nil || !strings.Contains(err.Error(), "user:x:0:0::/:") || !strings.Contains(err.Error(), "FailedPrecondition") {
			t.Errorf("got %v, want the line that is not the image's", err)
		}
	})
	t.Run("a name that the host is not told", func(t *testing.T) {
		img, err := testbed.NewImage(testbed.ImageOptions{User: "user"})
		if err != nil {
			t.Fatal(err)
		}
		ref := m.RegistryHost + "/plain:1"
		if err := testbed.Push(t.Context(), img, ref); err != nil {
			t.Fatal(err)
		}
		if err := m.Pull(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		_, err = m.pod.Create(t.Context(), "untold", ref, "id")
		if err == nil || !strings.Contains(err.Error(), "no users found") {
			t.Errorf("got %v, want the users that are missing", err)
		}
	})
	t.Run("plain image of a numeric user", func(t *testing.T) {
		img, err := testbed.NewImage(testbed.ImageOptions{User: "1000:50"})
		if err != nil {
			t.Fatal(err)
		}
		ref := m.RegistryHost + "/numeric:1"
		if err := testbed.Push(t.Context(), img, ref); err != nil {
			t.Fatal(err)
		}
		if err := m.Pull(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		out, err := m.pod.Run(t.Context(), "numeric", ref, "id", "-g")
		if err != nil || out != "50\n" {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

// TestGuestRouteOfTwoNamespaces pulls an image with ctr, after CRI has it.
func TestGuestRouteOfTwoNamespaces(t *testing.T) {
	t.Parallel()
	m := bootKata(t, testbed.Kata{})
	m.startPod()
	p := m.publish(t, "image", testbed.ImageOptions{User: "user"})
	m.runsInGuest(t, p, "cri")
	if err := m.CtrPull(t.Context(), "default", "coffer", p.ref); err != nil {
		t.Fatal(err)
	}
	names, err := m.Snapshots(t.Context(), "default", "coffer")
	if err != nil || len(names) != len(p.chains) {
		t.Errorf("got snapshots %q, %v", names, err)
	}
	// A view is for the host, and mounts without a helper.
	_, err = m.Ctr(t.Context(), "default", "snapshot", "--snapshotter", "coffer", "view", "look", p.chains[len(p.chains)-1].String())
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Ctr(t.Context(), "default", "snapshot", "--snapshotter", "coffer", "mounts", m.Path("look"), "look")
	if err != nil || !strings.Contains(out, "overlay") {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := m.Ctr(t.Context(), "default", "snapshot", "--snapshotter", "coffer", "rm", "look"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Ctr(t.Context(), "default", "image", "rm", "--sync", p.ref); err != nil {
		t.Fatal(err)
	}
	m.removeAllOfHost(t, p)
}

// removeAllOfHost removes image, containers and pod, and wants nothing of them left
// on the host, nor mounted in the guest. The guest keeps its layers until it ends.
func (m *machine) removeAllOfHost(t *testing.T, p *published) {
	t.Helper()
	if err := m.pod.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{p.ref, m.PauseRef()} {
		if err := m.RemoveImage(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func(ctx context.Context) error {
		names, err := m.Backend(ctx)
		folders, err2 := m.Folders("sn", "snapshots")
		if err = errors.Join(err, err2); err != nil || len(names)+len(folders) > 0 {
			return fmt.Errorf("left in the snapshotter: %q, %q (%w)", names, folders, err)
		}
		return nil
	})
	if mounts := m.mounted(t); len(mounts) > 0 {
		t.Errorf("still mounted: %q", mounts)
	}
}
