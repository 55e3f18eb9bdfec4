// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coffer-cc/coffer/integration/testbed"
)

// releaseTools makes a folder of tools with the containerd of another release:
// one that is in a folder below containerds of the tools, or of the folder that
// $COFFER_CONTAINERDS names, called by its version.
func releaseTools(t *testing.T, release string) (string, error) {
	t.Helper()
	tools, err := testbed.FindTools()
	if err != nil {
		return "", err
	}
	from := os.Getenv("COFFER_CONTAINERDS")
	if from == "" {
		from = filepath.Join(tools, "containerds")
	}
	found, err := filepath.Glob(filepath.Join(from, "v"+release+".*", "containerd"))
	if err != nil || len(found) == 0 {
		return "", errors.Join(fmt.Errorf("no containerd %s in %s", release, from), err)
	}
	dir := t.TempDir()
	for _, tool := range []string{"runc", "crictl", "registry"} {
		if err := os.Symlink(filepath.Join(tools, tool), filepath.Join(dir, tool)); err != nil {
			return "", err
		}
	}
	for _, tool := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		if err := os.Symlink(filepath.Join(filepath.Dir(found[0]), tool), filepath.Join(dir, tool)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// TestContainerdReleases runs encrypted and plain images, by ctr and crictl, on
// each containerd for which there is a drop-in, with that drop-in. The newest has
// all the other tests.
func TestContainerdReleases(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"1.7", "2.0", "2.1", "2.2", "2.3"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			tools, err := releaseTools(t, release)
			needs(t, "containerds", err)
			m := boot(t, testbed.Options{Tools: tools, Release: release})
			m.checkMergedConfig(t, release)
			m.startPod()
			p := m.publish(t, "secret", testbed.ImageOptions{Layers: 3, Compressions: everyCompression()})
			t.Run("crictl", func(t *testing.T) { m.runs(t, p) })
			t.Run("ctr", func(t *testing.T) { m.runsWithOldCtr(t, release, p) })
			m.hostHasNoLayer(t, p)
			t.Run("plain", func(t *testing.T) {
				img, err := testbed.NewImage(testbed.ImageOptions{})
				if err != nil {
					t.Fatal(err)
				}
				ref := m.RegistryHost + "/plain:1"
				if err := testbed.Push(t.Context(), img, ref); err != nil {
					t.Fatal(err)
				}
				plain := &published{Image: img, ref: ref, name: "plain"}
				m.runs(t, plain)
				// Containerd 1.7 unpacks it by itself, which needs an ordinary snapshotter.
				if err := m.CtrPull(t.Context(), "default", "coffer", ref); err != nil {
					t.Fatal(err)
				}
				out, err := m.CtrRun(t.Context(), "default", "coffer", ref, "plain", "cat", "/secret")
				if want := img.Secret + "\n"; err != nil || out != want {
					t.Errorf("ctr run printed %q, %v, want %q", out, err, want)
				}
			})
		})
	}
}

// runsWithOldCtr pulls and runs with ctr. That of containerd 1.7 unpacks by itself,
// and its transfer service knows no plain HTTP: there it runs what CRI has pulled.
func (m *machine) runsWithOldCtr(t *testing.T, release string, p *published) {
	t.Helper()
	namespace := "default"
	if release == "1.7" {
		namespace = "k8s.io"
	} else if err := m.CtrPull(t.Context(), namespace, "coffer", p.ref); err != nil {
		t.Fatal(err)
	}
	out, err := m.CtrRun(t.Context(), namespace, "coffer", p.ref, "c", "cat", "/secret")
	if want := p.Secret + "\n"; err != nil || out != want {
		t.Errorf("ctr run printed %q, %v, want %q", out, err, want)
	}
}

// checkMergedConfig wants the drop-in in what containerd makes of its files, and
// nothing of the main file lost.
func (m *machine) checkMergedConfig(t *testing.T, release string) {
	t.Helper()
	dump, err := m.Exec(t.Context(), m.Containerd.Path(), append(m.Containerd.Args(), "config", "dump")...)
	if err != nil {
		t.Fatal(err)
	}
	snapshotters := regexp.MustCompile(`snapshotter = ['"](overlayfs|coffer)['"]`).FindAllString(dump, -1)
	if len(snapshotters) < 3 { // the default, the handler, the list
		t.Errorf("the merged configuration names snapshotters %q in\n%s", snapshotters, dump)
	}
	for _, text := range []string{"containerd.runtimes.coffer]", "containerd.runtimes.runc]", m.PauseRef(), "certs.d"} {
		if !strings.Contains(strings.ReplaceAll(dump, `"coffer"`, "coffer"), text) {
			t.Errorf("containerd %s: the merged configuration has no %s", release, text)
		}
	}
}
