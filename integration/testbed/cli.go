// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// CommandError is a command line program that ended with an error.
type CommandError struct {
	// Args is the command line; Output what it wrote to stderr, or to stdout
	// if that was nothing.
	Args   []string
	Output string
	Err    error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %v: %s", strings.Join(e.Args, " "), e.Err, e.Output)
}

func (e *CommandError) Unwrap() error { return e.Err }

// environment is this process's, less what points coffer, containerd's tools and
// skopeo to services and keys outside of the testbed.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		for _, prefix := range []string{"COFFER_", "CONTAINERD_", "CONTAINER_RUNTIME_", "IMAGE_SERVICE_", "OCICRYPT_", "DOCKER_", "REGISTRY_", "OTEL_"} {
			if strings.HasPrefix(v, prefix) {
				return true
			}
		}
		return false
	})
}

// run runs a program inside the sandbox and returns its stdout.
func (t *Testbed) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(environment(), "PATH="+t.opts.Tools+":/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR="+t.path("tmp"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // a container may hold the pipes
	if err := t.box.start(cmd); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		out := strings.TrimSpace(stderr.String())
		if out == "" {
			out = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), &CommandError{Args: append([]string{filepath.Base(program)}, args...), Output: out, Err: err}
	}
	return stdout.String(), nil
}

// Exec runs any program inside the testbed's namespaces and returns its stdout.
// What it mounts or leaves running ends with the testbed; its temporary files
// are in the testbed's folder. The error is a *CommandError.
func (t *Testbed) Exec(ctx context.Context, program string, args ...string) (string, error) {
	return t.run(ctx, program, args...)
}

// Ctr runs containerd's ctr in a containerd namespace and returns its stdout.
func (t *Testbed) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	return t.run(ctx, t.tool("ctr"), append([]string{"--address", t.ContainerdSocket(), "--namespace", namespace}, args...)...)
}

// CtrPull pulls an image with ctr, which leaves it to the transfer service.
func (t *Testbed) CtrPull(ctx context.Context, namespace, snapshotter, ref string) error {
	_, err := t.Ctr(ctx, namespace, "image", "pull", "--snapshotter", snapshotter, "--hosts-dir", t.HostsDir(), ref)
	return err
}

// CtrRun runs a command in a new container with ctr, on the host's network,
// and returns its output. The container is removed.
func (t *Testbed) CtrRun(ctx context.Context, namespace, snapshotter, ref, id string, command ...string) (string, error) {
	args := []string{
		"run", "--rm", "--snapshotter", snapshotter, "--net-host", "--cgroup", t.CgroupPath("ctr-" + id),
		"--runc-binary", t.Runc(), "--runc-root", t.path("runc-ctr"),
		"--fifo-dir", t.path("fifo"), ref, id,
	}
	return t.Ctr(ctx, namespace, append(args, command...)...)
}

// Coffer runs the coffer command line, as a publisher does: outside the
// machine's namespaces.
func (t *Testbed) Coffer(ctx context.Context, args ...string) (string, error) {
	return Run(ctx, t.program("coffer"), args...)
}

// Run runs a program outside any testbed and returns its stdout; the error is
// a *CommandError.
func Run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), &CommandError{
			Args:   append([]string{filepath.Base(program)}, args...),
			Output: strings.TrimSpace(stderr.String() + stdout.String()), Err: err,
		}
	}
	return stdout.String(), nil
}

// CgroupPath is the cgroup for a container called name, below the one that
// Close removes.
func (t *Testbed) CgroupPath(name string) string { return "/" + t.cgroup + "/" + name }

func (t *Testbed) tool(name string) string    { return filepath.Join(t.opts.Tools, name) }
func (t *Testbed) program(name string) string { return filepath.Join(t.opts.Programs, name) }
