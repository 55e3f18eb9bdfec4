// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// cri is the containerd namespace of CRI's images and containers.
const cri = "k8s.io"

// handlerAnnotation tells CRI at PullImage which runtime, and so which
// snapshotter, an image is for.
const handlerAnnotation = "io.containerd.cri.runtime-handler"

// Crictl runs crictl against this containerd and returns its stdout.
func (t *Testbed) Crictl(ctx context.Context, args ...string) (string, error) {
	endpoint := "unix://" + t.ContainerdSocket()
	base := []string{
		"--config", os.DevNull, "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "120s",
	}
	return t.run(ctx, t.tool("crictl"), append(base, args...)...)
}

// Pull pulls an image with crictl for the testbed's runtime (coffer, or runc
// in a plain testbed).
func (t *Testbed) Pull(ctx context.Context, ref string) error {
	file, err := t.writePod("pull")
	if err != nil {
		return err
	}
	_, err = t.Crictl(ctx, "pull", "--pod-config", file, ref)
	return err
}

// RemoveImage removes an image with crictl.
func (t *Testbed) RemoveImage(ctx context.Context, ref string) error {
	_, err := t.Crictl(ctx, "rmi", ref)
	return err
}

// runtime is the name of the CRI runtime that containers use.
func (t *Testbed) runtime() string {
	if t.opts.Plain {
		return "runc"
	}
	return "coffer"
}

// writePod writes a pod configuration and returns its path. Pods use the
// host's network, so that no CNI is needed.
func (t *Testbed) writePod(name string) (string, error) {
	return t.path("pods", name+".json"), writeJSON(t.path("pods", name+".json"), map[string]any{
		"metadata":      map[string]any{"name": name, "namespace": "default", "uid": name, "attempt": 1},
		"annotations":   map[string]string{handlerAnnotation: t.runtime()},
		"log_directory": t.path("pods", name),
		"linux": map[string]any{
			"cgroup_parent":    t.CgroupPath("pods"),
			"security_context": map[string]any{"namespace_options": map[string]any{"network": 2}},
		},
	})
}

func writeJSON(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// Pod is a running pod.
type Pod struct {
	// ID is CRI's.
	ID string

	t      *Testbed
	config string
}

// RunPod starts a pod. Its name must be new.
func (t *Testbed) RunPod(ctx context.Context, name string) (*Pod, error) {
	config, err := t.writePod(name)
	if err != nil {
		return nil, err
	}
	id, err := t.Crictl(ctx, "runp", "--runtime", t.runtime(), config)
	if err != nil {
		return nil, err
	}
	return &Pod{ID: strings.TrimSpace(id), t: t, config: config}, nil
}

// Create makes a container in the pod from an image that has been pulled and
// returns its id. Its name must be new in the pod.
func (p *Pod) Create(ctx context.Context, name, ref string, command ...string) (string, error) {
	file := strings.TrimSuffix(p.config, ".json") + "-" + name + ".json"
	err := writeJSON(file, map[string]any{
		"metadata": map[string]any{"name": name, "attempt": 1},
		"image":    map[string]any{"image": ref},
		"command":  command,
		"log_path": name + ".log",
		"linux":    map[string]any{},
	})
	if err != nil {
		return "", err
	}
	id, err := p.t.Crictl(ctx, "create", "--no-pull", p.ID, file, p.config)
	return strings.TrimSpace(id), err
}

// Run creates a container, starts it, waits for its end and returns what it
// wrote. A command that fails is an error. The container stays.
func (p *Pod) Run(ctx context.Context, name, ref string, command ...string) (string, error) {
	id, err := p.Create(ctx, name, ref, command...)
	if err != nil {
		return "", err
	}
	if err := p.t.startAndWait(ctx, id); err != nil {
		return "", err
	}
	return p.t.Crictl(ctx, "logs", id)
}

// startAndWait starts a CRI container and waits for containerd's word that its
// process has ended.
func (t *Testbed) startAndWait(ctx context.Context, id string) error {
	exited, done, err := t.watchExit(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if _, err := t.Crictl(ctx, "start", id); err != nil {
		return err
	}
	select {
	case status := <-exited:
		if status.err != nil {
			return status.err
		}
		if status.code != 0 {
			out, err := t.Crictl(ctx, "logs", id)
			return fmt.Errorf("container %s ended with status %d: %s (%w)", id, status.code, out, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remove stops the pod and removes it with its containers.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.t.Crictl(ctx, "rmp", "--force", p.ID)
	return err
}
