// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// SnapshotterRoot is the folder of coffer-snapshotter.
func (t *Testbed) SnapshotterRoot() string { return t.path("sn") }

// Backend lists what coffer-snapshotter itself has, of all namespaces, as
// containerd's garbage collection sees it: kind and name.
func (t *Testbed) Backend(ctx context.Context) (names []string, err error) {
	conn, err := grpc.NewClient("unix://"+t.path("sn.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "coffer")
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Kind.String()+" "+i.Name)
		return nil
	})
	return names, err
}

// Folders lists the names in a folder of the testbed, none if it is not there.
func (t *Testbed) Folders(elem ...string) ([]string, error) {
	entries, err := os.ReadDir(t.path(elem...))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Descriptors lists what a running component's open files lead to.
func (c *Component) Descriptors() ([]string, error) {
	dir := "/proc/" + strconv.Itoa(c.PID()) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open = append(open, target)
		}
	}
	return open, nil
}

// Stacks ends a running component of ours with SIGQUIT, on which the Go runtime
// writes the stacks of all goroutines to the log, and returns what it wrote.
func (c *Component) Stacks() (string, error) {
	before, err := os.ReadFile(c.Log)
	if err != nil {
		return "", err
	}
	if err := c.end(syscall.SIGQUIT); err != nil {
		return "", err
	}
	after, err := os.ReadFile(c.Log)
	if err != nil {
		return "", err
	}
	if len(after) < len(before) {
		return "", fmt.Errorf("%s was made shorter", c.Log)
	}
	return string(after[len(before):]), nil
}
