// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	transferregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"

	"github.com/coffer-cc/coffer/integration/testbed"
)

func everyCompression() []testbed.Compression {
	return []testbed.Compression{testbed.Gzip, testbed.Zstd, testbed.None}
}

// TestEncryptedImagesRun is the main job: encrypted images run in every way
// that containerd has, no layer reaches the host, and one handshake serves all.
func TestEncryptedImagesRun(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	if n := m.handshakes(t); n != 0 {
		t.Errorf("%d handshakes for a plain pause image, want 0", n)
	}
	big := m.publish(t, "big", testbed.ImageOptions{Layers: 7, Compressions: everyCompression()})
	second := m.publishFor(t, "second", big.key, testbed.ImageOptions{Compressions: everyCompression()})
	images := []*published{big, second}

	t.Run("crictl", func(t *testing.T) { m.runsWithCrictl(t, big); m.runs(t, second) })
	t.Run("ctr", func(t *testing.T) { m.runsWithCtr(t, big) })
	t.Run("client", func(t *testing.T) { m.runsWithClient(t, big) })

	if n := m.handshakes(t); n != 1 {
		t.Errorf("%d handshakes for all layers of two images with one key, want 1", n)
	}
	m.hostHasNoLayer(t, images...)
	m.guestFetchedOnce(t, images...)
	m.removeAll(t, images...)
}

// runsWithCrictl runs a container that looks at files of all layers.
func (m *machine) runsWithCrictl(t *testing.T, p *published) {
	t.Helper()
	if err := m.Pull(t.Context(), p.ref); err != nil {
		t.Fatal(err)
	}
	const script = "cat /secret /etc/replaced; ls /etc/removed 2>&1; ls /data; stat -c %a /secret /tmp; id -u; echo x >/new && cat /new"
	out, err := m.pod.Run(t.Context(), "look", p.ref, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	want := p.Secret + "\nupper\nls: /etc/removed: No such file or directory\n" +
		"0\n1\n2\n3\n4\n5\n6\n7\n600\n1777\n0\nx\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("container's log (-want +got):\n%s", diff)
	}
}

func (m *machine) runsWithCtr(t *testing.T, p *published) {
	t.Helper()
	if err := m.CtrPull(t.Context(), "default", "coffer", p.ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.CtrRun(t.Context(), "default", "coffer", p.ref, "c", "cat", "/secret")
	if err != nil {
		t.Fatal(err)
	}
	if want := p.Secret + "\n"; out != want {
		t.Errorf("ctr run printed %q, want %q", out, want)
	}
}

// runsWithClient pulls as CRI does, through the transfer service with a layer
// unpacked for the snapshotter, and runs a container as a client.
func (m *machine) runsWithClient(t *testing.T, p *published) {
	t.Helper()
	client, err := m.Client("client")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	registry, err := transferregistry.NewOCIRegistry(ctx, p.ref, transferregistry.WithHostDir(m.HostsDir()))
	if err != nil {
		t.Fatal(err)
	}
	store := transferimage.NewStore(p.ref, transferimage.WithUnpack(platforms.DefaultSpec(), "coffer"),
		transferimage.WithImageLabels(map[string]string{"io.cri-containerd.image": "managed"}))
	if err := client.Transfer(ctx, registry, store); err != nil {
		t.Fatal(err)
	}
	out, err := m.runContainer(ctx, client, p.ref)
	if err != nil {
		t.Fatal(err)
	}
	if want := p.Secret + "\n"; out != want {
		t.Errorf("the container printed %q, want %q", out, want)
	}
}

func (m *machine) runContainer(ctx context.Context, client *containerd.Client, ref string) (out string, err error) {
	image, err := client.GetImage(ctx, ref)
	if err != nil {
		return "", err
	}
	container, err := client.NewContainer(ctx, "c",
		containerd.WithSnapshotter("coffer"),
		containerd.WithNewSnapshot("c", image),
		containerd.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: m.Runc(), Root: m.Path("runc-client")}),
		containerd.WithNewSpec(oci.WithImageConfigArgs(image, []string{"cat", "/secret"}), oci.WithCgroup(m.CgroupPath("client"))))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	var stdout, stderr bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr), cio.WithFIFODir(m.Path("fifo"))))
	if err != nil {
		return "", err
	}
	defer func() {
		_, derr := task.Delete(ctx, containerd.WithProcessKill)
		err = errors.Join(err, derr)
	}()
	exited, err := task.Wait(ctx)
	if err != nil {
		return "", err
	}
	if err := task.Start(ctx); err != nil {
		return "", err
	}
	status := <-exited
	task.IO().Wait()
	if status.ExitCode() != 0 {
		return "", fmt.Errorf("exit status %d: %s (%w)", status.ExitCode(), stderr.String(), status.Error())
	}
	return stdout.String(), nil
}

// guestFetchedOnce wants every layer to have been fetched from the registry
// exactly once, although several clients pulled.
func (m *machine) guestFetchedOnce(t *testing.T, images ...*published) {
	t.Helper()
	fetched := map[string]int{}
	for _, r := range m.Proxy.Requests() {
		if r.Method == "GET" {
			fetched[r.Path[strings.LastIndexByte(r.Path, '/')+1:]]++
		}
	}
	for _, p := range images {
		for _, l := range p.manifest.Layers {
			if n := fetched[l.Digest.String()]; n != 1 {
				t.Errorf("layer %s of %s was fetched %d times, want once", l.Digest, p.ref, n)
			}
		}
	}
}

// removeAll removes images, containers and the pod, and wants nothing of them
// left: no snapshot, no layer in the guest's store, no mount.
func (m *machine) removeAll(t *testing.T, images ...*published) {
	t.Helper()
	ctx := t.Context()
	if err := m.pod.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	refs := []string{m.PauseRef()}
	for _, p := range images {
		refs = append(refs, p.ref)
	}
	for _, ref := range refs {
		if err := m.RemoveImage(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	for _, namespace := range []string{"default", "client"} {
		if _, err := m.Ctr(ctx, namespace, "image", "rm", "--sync", images[0].ref); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func(ctx context.Context) error {
		for _, namespace := range []string{"k8s.io", "default", "client"} {
			names, err := m.Snapshots(ctx, namespace, "coffer")
			if err != nil || len(names) > 0 {
				return fmt.Errorf("snapshots left in %s: %q (%w)", namespace, names, err)
			}
		}
		layers, staging, err := m.ListGuestStore(ctx)
		if err != nil || len(layers)+len(staging) > 0 {
			return fmt.Errorf("left in the guest's store: layers %q, staging %q (%w)", layers, staging, err)
		}
		return nil
	})
	if mounts := m.mounted(t); len(mounts) > 0 {
		t.Errorf("still mounted: %q", mounts)
	}
}

// TestPlainImageAttestsNothing runs an image that is not encrypted through
// the same path.
func TestPlainImageAttestsNothing(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	img, err := testbed.NewImage(testbed.ImageOptions{Compressions: everyCompression()})
	if err != nil {
		t.Fatal(err)
	}
	ref := m.RegistryHost + "/plain:1"
	if err := testbed.Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	m.runs(t, &published{Image: img, ref: ref, name: "plain"})
	if n := m.handshakes(t); n != 0 {
		t.Errorf("%d handshakes, want 0", n)
	}
}

// TestImagePulledForAnotherRuntime: a pull that does not name the runtime goes
// to containerd's own snapshotter; the image runs under coffer all the same.
func TestImagePulledForAnotherRuntime(t *testing.T) {
	t.Parallel()
	m := boot(t, testbed.Options{})
	m.startPod()
	img, err := testbed.NewImage(testbed.ImageOptions{Compressions: everyCompression()})
	if err != nil {
		t.Fatal(err)
	}
	ref := m.RegistryHost + "/other:1"
	if err := testbed.Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Crictl(t.Context(), "pull", ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.pod.Run(t.Context(), "other", ref, "cat", "/secret")
	if want := img.Secret + "\n"; err != nil || out != want {
		t.Errorf("the container printed %q, %v, want %q", out, err, want)
	}
}
